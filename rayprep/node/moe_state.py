"""What a server finds where it looks for its MoE configs: another config makes it compile other kernels."""

from collections.abc import Iterable

from rayprep.host.files import read_bytes
from rayprep.host.layout import Layout
from rayprep.host.moe_folder import digest_of, shipped_configs
from rayprep.model.caches import CacheName
from rayprep.model.completion import Check, CheckState, Completion
from rayprep.model.stages import StageName


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
