"""Flags about the fleet, to a FleetSpec."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayprep.base.errors import BadRequest
from rayprep.model.fleet.parts import WORTH_S
from rayprep.model.fleet.rollout import make_rollout
from rayprep.model.fleet.spec import FleetSpec, VerifyScope, parse_labels


@dataclass
class FleetFlags:
    """Flags about the fleet, as they were given."""

    address: str | None = None
    nodes: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    require_uniform: bool = False
    rollout: str | None = None
    canary: int | None = None
    wave: str | None = None
    max_failures: int | None = None
    node_retries: int = 1
    deal_from: float | None = None
    verify: str | None = None

    def spec(self) -> FleetSpec:
        """Raises BadRequest."""
        if self.rollout not in (None, "all"):
            raise BadRequest(
                f"--rollout {self.rollout!r}", hint="it is all; for fewer at once give --canary and --wave"
            )
        if self.rollout and (self.canary is not None or self.wave is not None):
            raise BadRequest("--rollout all and --canary or --wave exclude each other", hint="leave one out")
        if self.deal_from is not None and not self.deal_from >= 0:
            raise BadRequest(f"--deal-from {self.deal_from} is no time", hint="give 0 or more seconds")
        # Wrong values are refused before anybody is asked.
        make_rollout(
            (), canary=self.canary, wave=self.wave, max_failures=self.max_failures, node_retries=self.node_retries
        )
        return FleetSpec(
            nodes=_names(self.nodes),
            exclude=_names(self.exclude),
            labels=parse_labels(_names(self.labels)),
            require_uniform=self.require_uniform,
            canary=self.canary,
            wave=self.wave,
            max_failures=self.max_failures,
            node_retries=self.node_retries,
            verify=VerifyScope(self.verify or "all"),
            deal_from_s=WORTH_S if self.deal_from is None else self.deal_from,
        )


def _names(given: list[str]) -> tuple[str, ...]:
    """Repeated, or with commas between."""
    return tuple(name for each in given for name in each.split(",") if name)


def address_of(flag: str | None, environ: Mapping[str, str]) -> str:
    """Never a guess: a bare Ray would start a cluster of its own beside the one that is meant. Raises BadRequest."""
    address = flag or environ.get("RAY_ADDRESS")
    if not address:
        raise BadRequest("this needs the cluster's address", hint="give --address HOST:PORT, or set RAY_ADDRESS")
    return address
