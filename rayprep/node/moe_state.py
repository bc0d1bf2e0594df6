"""The MoE configs where a server looks for them: which there are, and whether one of ours may be there."""

from collections.abc import Iterable

from rayprep.host.files import read_bytes
from rayprep.host.layout import Layout
from rayprep.model.caches import CacheName
from rayprep.model.completion import Check, CheckState, Completion
from rayprep.model.plan import NotNeeded
from rayprep.model.stages import StageName
from rayprep.model.tuning import Tuning
from rayprep.sglang.moe_shape import MoeShape
from rayprep.stages.moe_tune.search import TUNER_VERSION, tuning_digest
from rayprep.stages.moe_tune.units import shape_of, tuner_of
from rayprep.stages.protocol import StageRequest
from rayprep.store.moe_folder import digest_of, shipped_configs
from rayprep.store.moe_withdrawn import withdrawal_of


def found_configs(layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """`triton_<version>/<name>` -> `sha256:...` of what is there, or nothing.

    In the store, or else where SGLang ships it: a copy of that in the store changes nothing for a server.
    """
    return {name: _digest(layout, name) for name in names}


def _digest(layout: Layout, name: str) -> str:
    folders = (layout.cache(CacheName.MOE_CONFIGS) / "configs", shipped_configs())
    for folder in folders:
        try:
            if folder is not None:
                return digest_of(read_bytes(folder / name))
        except OSError:
            continue
    return ""


def served_with_others(layout: Layout, completion: Completion) -> Check | None:
    """The verdict on what a server left that read other MoE configs than one would today; None where it read these."""
    if completion.stage is not StageName.SERVE:
        return None
    now = found_configs(layout, completion.moe_configs)
    changed = [name for name, digest in completion.moe_configs.items() if now[name] != digest]
    if not changed:
        return None
    return Check(state=CheckState.NOT_COVERED, detail=f"a server reads another MoE config now: {changed[0]}")


def is_tried(tuning: Tuning | None) -> bool:
    """Whether every entry of the file was launched before it was put before servers.

    Earlier versions of the tuner launched what they had measured alone, and no script's file at all.
    """
    return tuning is None or (tuning.gpus > 0 and tuning.tuner_version in (None, TUNER_VERSION))


def withdrawn(layout: Layout, request: StageRequest) -> NotNeeded | None:
    """Why a config is not tuned again: a server died of what the same tuner had made of the same shape."""
    shape = shape_of(request)
    known = withdrawal_of(layout, tuning_digest(request.signature, shape)) if isinstance(shape, MoeShape) else None
    if known is None or known.tuner != tuner_of(request.spec):
        return None
    since = f"since {known.since}, --rebuild {StageName.MOE_TUNE} tunes anew"
    return NotNeeded(reason="withdrawn", detail=f"{known.reason}; {since}")
