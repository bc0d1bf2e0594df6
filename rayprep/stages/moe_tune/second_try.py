"""No server may die of what rayprep put before it: where one has, it is started once more without that.

If it lives then, what was set aside stays so: a MoE config is withdrawn, for as long as the same tuner would make it
again; of a cache's entries the server has made its own, and the caches are as if the others had not been. If it dies
again all is put back, for something else is to blame.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rayprep.base.errors import MEANING, ErrorType, RayprepError, StageError, causes
from rayprep.host.layout import Layout
from rayprep.model.blame import Blame, ServerDied, blames
from rayprep.model.caches import CacheName
from rayprep.model.stages import ANSWERS_FOR, StageName
from rayprep.sglang.moe_config_lines import MoeConfigs
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.search import tuning_digest
from rayprep.stages.moe_tune.units import shape_of, tuner_of
from rayprep.stages.protocol import StageRequest
from rayprep.store.aside import Aside
from rayprep.store.completions import read_completions
from rayprep.store.moe_withdrawn import tuned_files, withdraw

T = TypeVar("T")


@dataclass(frozen=True)
class SetAside:
    """What a server died of, and lives without."""

    blame: Blame
    gone: tuple[str, ...]
    """Below the profiles root."""
    died: StageError

    @property
    def stage(self) -> StageName:
        """Who answers for it; of what may be in any cache, the stage whose server made its own."""
        return ANSWERS_FOR[self.blame.cache] if self.blame.cache else StageName.SERVE

    @property
    def message(self) -> str:
        if self.stage is StageName.MOE_TUNE:
            return f"a server died of the tuned config, which is withdrawn: {self.died.message}"
        return f"a server died of {self.blame}, which is set aside, and the server made its own: {self.died.message}"


@dataclass(frozen=True)
class SecondTry(Generic[T]):
    """`run` starts a server, and raises ServerDied, or what came of it, where that died."""

    request: StageRequest
    layout: Layout
    run: Callable[[], T]
    say: Callable[[str], None]
    """Takes a hint of what goes on."""
    placed: tuple[str, ...] = ()
    """MoE configs below the profiles root that no completion lists yet."""
    alone: Callable[[], None] = lambda: None
    """Returns once nobody else of this run writes to the caches: half of what one builds would be set aside."""

    def go(self) -> tuple[T, tuple[SetAside, ...]]:
        """Runs it, and once more without each thing that it may have died of.

        Raises:
            StageError: what `run` raised first, where it did so without them, too.
        """
        try:
            return self.run(), ()
        except StageError as error:
            died = next((cause for cause in causes(error) if isinstance(cause, ServerDied)), None)
            if died is None:
                raise
            for blame in self._blames(died):
                if answer := self._without(blame, died):
                    return answer
            raise

    def _blames(self, died: ServerDied) -> tuple[Blame, ...]:
        roots = {str(self.layout.profiles), os.path.realpath(self.layout.profiles)}
        return blames(died.error_type, died.death, self._ours(died.moe_configs, roots), roots, died.signal)

    def _ours(self, said: MoeConfigs, roots: set[str]) -> tuple[str, ...]:
        """The configs that the server used and that came of a tuning, with their twins for the second product.

        None where this request has no experts to tune: nobody would be told to leave a config of them away.
        """
        if not isinstance(shape_of(self.request), MoeShape):
            return ()
        tuned = {*tuned_files(self.layout), *self.placed}
        used = {path.removeprefix(f"{root}/") for root in roots for path in said.used}
        found = {path for path in tuned if path in used or path.replace("_down.json", ".json") in used}
        return tuple(sorted(found))

    def _without(self, blame: Blame, died: ServerDied) -> tuple[T, tuple[SetAside, ...]] | None:
        """What a start comes to without what is blamed; None where it dies, or there is nothing to set aside."""
        self.alone()
        try:
            aside = Aside(self.layout, blame, died.started_at)
        except OSError:
            return None
        if not aside.moved:
            return None
        self.say(f"starting once more without {blame}")
        try:
            result = self.run()
            self._withdraw(aside, blame, died)
        except StageError:
            aside.put_back()
            return None
        except (RayprepError, OSError):
            aside.put_back()
            raise
        return result, (SetAside(blame, aside.settle(), died),)

    def _withdraw(self, aside: Aside, blame: Blame, died: ServerDied) -> None:
        shape = shape_of(self.request)
        if blame.cache is CacheName.MOE_CONFIGS and isinstance(shape, MoeShape):
            digest = tuning_digest(self.request.signature, shape)
            withdraw(self.layout, digest, aside.moved, self._tuner(aside.moved), died.line)

    def _tuner(self, moved: Iterable[str]) -> str:
        """Who made the configs: a request that tunes nothing, as a proof's, does not say it."""
        completions, _ = read_completions(self.layout, StageName.MOE_TUNE)
        tuners = {
            completion.finished_at: completion.tuning.tuner
            for completion in completions
            if completion.tuning and not completion.artifacts.keys().isdisjoint(moved)
        }
        return tuners[max(tuners)] if tuners and not self.placed else tuner_of(self.request.spec)


def withdrawn_error(aside: SetAside) -> StageError:
    """What `moe_tune` failed with."""
    hint = f"{MEANING[ErrorType.WITHDRAWN][1]}; {aside.died.hint}"
    return StageError(ErrorType.WITHDRAWN, aside.message, hint=hint, log_tail=aside.died.log_tail)
