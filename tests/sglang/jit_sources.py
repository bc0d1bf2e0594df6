"""SGLang's functions that compile its own JIT modules, as each release has them, less flags, asserts and types."""

from pathlib import Path

from pydantic import TypeAdapter

from rayprep.base.records import Record


class JitSource(Record):
    """One function, and what of SGLang its module imports by name."""

    module: str
    releases: tuple[str, ...]
    imports: tuple[str, ...]
    source: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.source)


_FILE = Path(__file__).parents[1] / "data/jit_functions.json"
JIT_SOURCES = TypeAdapter(tuple[JitSource, ...]).validate_json(_FILE.read_bytes())


def jit_sources(release: str) -> dict[str, JitSource]:
    """Return a release's functions by their modules."""
    return {source.module: source for source in JIT_SOURCES if release in source.releases}
