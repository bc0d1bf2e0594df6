"""What a server's log says of the MoE kernel's config files, and whether that is the one that was tuned.

Source: `get_moe_configs` in sglang 0.5.16, `srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py`.
"""

import re
from collections.abc import Iterable
from pathlib import PurePath

from rayprep.base.records import Record

_PATH = r"(.+?\.json)\b(?!\S*/)"
"""A folder on the way may have `.json` in its name, and the file's own name has blanks."""
# The contract has a colon in place of `from`, and the name alone in place of the path.
_USED = re.compile(rf"Using MoE kernel config(?: from|:) {_PATH}")
_MISSED = re.compile(rf"Config file not found at {_PATH}")


class MoeConfigs(Record):
    """The files as the log names them, each once, in its order."""

    used: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    """Those that were looked for and not there."""

    def uses(self, config: PurePath) -> bool:
        """Whether `config` is among them, below a `moe_configs` wherever that is mounted.

        Its name alone does not tell: the file that ships with SGLang is called the same. The contract's wording has
        no more than that, and is believed.
        """
        return any(each in (config.name, _tail(config)) or each.endswith(f"/{_tail(config)}") for each in self.used)


def looked_for(said: MoeConfigs | None) -> tuple[str, ...]:
    """Those that the log names with their folder, as `triton_<version>/<name>`."""
    paths = (PurePath(each) for each in ((*said.used, *said.missed) if said else ()))
    return tuple(dict.fromkeys("/".join(path.parts[-2:]) for path in paths if len(path.parts) > 1))


def _tail(config: PurePath) -> str:
    """Such as `moe_configs/configs/triton_3_6_0/NAME.json`."""
    return "/".join(config.parts[-4:])


def heard(line: str, before: MoeConfigs) -> MoeConfigs:
    """`before` with what this line says."""
    for field, pattern in (("used", _USED), ("missed", _MISSED)):
        if found := pattern.search(line):
            known: tuple[str, ...] = getattr(before, field)
            return before.model_copy(update={field: tuple(dict.fromkeys((*known, found[1])))})
    return before


def complaint(config: PurePath, said: MoeConfigs) -> str:
    """Why a log that does not say that `config` is used is no proof."""
    why = f'no "Using MoE kernel config from .../{_tail(config)}" in the server\'s log'
    other = _listed("it uses", said.used) or _listed("it looked for", said.missed)
    return f"{why}; {other}" if other else why


def _listed(what: str, names: Iterable[str]) -> str:
    text = " and ".join(names)
    return f"{what} {text}" if text else ""
