"""How the processes that a stage started were ended."""

from collections.abc import Sequence

from rayprep.base.records import Record


class Cleanup(Record):
    """The contract's `cleanup`. `killed`: all of them are gone."""

    kill_sent: bool
    killed: bool
    timeout_s: float


def together(ends: Sequence[Cleanup]) -> Cleanup | None:
    """How all of them were ended, as one; None where none was."""
    if not ends:
        return None
    return Cleanup(
        kill_sent=any(each.kill_sent for each in ends),
        killed=all(each.killed for each in ends),
        timeout_s=ends[0].timeout_s,
    )
