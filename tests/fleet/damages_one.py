"""An agent that sends damaged files. A module of its own: other agents import it, in a thread."""

from collections.abc import Iterator, Sequence
from pickle import PickleBuffer

from rayprep.fleet.agent.agent import HostAgent
from rayprep.fleet.agent.messages import Asked
from rayprep.model.completion import Key


class DamagesOne(HostAgent):
    """A host whose first package is damaged on its way."""

    damaged = False

    def pieces(self, asked: Asked, keys: Sequence[Key]) -> Iterator[PickleBuffer]:
        whole = b"".join(map(bytes, super().pieces(asked, keys)))
        yield PickleBuffer(whole if self.damaged else whole.replace(b"so!", b"so "))
        self.damaged = True
