"""The odd ones out of a fleet: where a host's signature is not what most hosts have, field by field."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rayprep.base.records import Record, Utf8
from rayprep.model.signature import BINDING, Signature
from rayprep.model.stages import StageName

_OF_THE_REQUEST = ("model_slug", "tp_size")
"""They say what is asked for, and nothing of the host."""
_NAMED = 3
"""So many hosts a line names; the record has them all."""


class Oddity(Record):
    """One value of one field that some hosts have and most do not."""

    field: str
    value: str | int | None
    hosts: tuple[Utf8, ...]
    """Sorted."""
    usual: str | int | None
    usual_count: int
    """How many hosts have the usual value."""
    binds: tuple[StageName, ...]
    """The selected stages whose artifacts cannot be shared for it. None for a driver: that is information."""

    def __str__(self) -> str:
        named = ", ".join(self.hosts[:_NAMED])
        more = f" and {len(self.hosts) - _NAMED} more" if len(self.hosts) > _NAMED else ""
        many = "1 host has" if self.usual_count == 1 else f"{self.usual_count} hosts have"
        name = self.field.removesuffix("_version")
        return f"{named}{more}: {name} {_shown(self.value)} where {many} {_shown(self.usual)}"


def _shown(value: str | int | None) -> str | int:
    return "none" if value is None else value


def odd_ones_out(signatures: Mapping[str, Signature], stages: Sequence[StageName]) -> tuple[Oddity, ...]:
    """One for each unusual value: the binding fields first, then in the signature's order, the fewest hosts first.

    Of two values that are as frequent, the first host's is the usual one.

    Args:
        signatures: host -> its signature.
        stages: those that are selected.
    """
    fields = [field for field in Signature.model_fields if field not in _OF_THE_REQUEST]
    found = [oddity for field in fields for oddity in _in_field(field, signatures, stages)]
    return tuple(sorted(found, key=lambda oddity: not oddity.binds))


def _in_field(field: str, signatures: Mapping[str, Signature], stages: Sequence[StageName]) -> list[Oddity]:
    values: dict[str, str | int | None] = {host: getattr(signatures[host], field) for host in sorted(signatures)}
    counts = Counter(values.values()).most_common()
    if len(counts) < 2:
        return []
    (usual, usual_count), *_ = counts
    having = defaultdict(list)
    for host, value in values.items():
        having[value].append(host)
    del having[usual]
    return [
        Oddity(
            field=field,
            value=value,
            hosts=tuple(hosts),
            usual=usual,
            usual_count=usual_count,
            binds=tuple(stage for stage in stages if field in BINDING[stage]),
        )
        for value, hosts in sorted(having.items(), key=lambda item: (len(item[1]), item[1][0]))
    ]
