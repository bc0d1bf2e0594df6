"""The checks, on small wheels made up here."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.upstream.checks import BAR, AnyOf, Calls, Check, File, Flag, Holds, Item, Named, Says, Wants, Without
from scripts.upstream.contract import Contract
from scripts.upstream.wheel import Wheel

FILES: Mapping[str, str | bytes] = {
    "lib/__init__.py": "from .core import MODELS, build as make\nfrom lib.core import Layer\n",
    "lib/core.py": """
try:
    import fast
except ImportError:
    def build(spec, /, verbose, *, need_lock=False, **others): ...

alias = build
class Layer:
    def __init__(self, size, block=None):
        self.heads = size
    def run(self, states): ...
class Config(NamedTuple):
    name: str
    width: int = 1
Layer = wrapped(Layer)
made = partial(build)
MODELS = frozenset({"Llama"})  # not Gemma
""",
    "lib/log.py": """
def tell(n, bar):
    '''Explains NOT_A_VARIABLE.'''
    logger.info(f"Try for <{n.kind}> N={n}, " f"K={n:.2f}")
    logger.warning("Module %s failed after %.2fs", n, n)
    bar.set_description(f"Capturing batches ({n=} GB)")
    os.environ.get("LIB_DIR")
    envs.LIB_MODE.get()
""",
    "lib/_C.so": b"\x7fELF\x00Running: %s\x00",
    "sglang/srt/server_args.py": """
class ServerArgs:
    tp_size: A[int, Arg(aliases=["--tensor-parallel-size"])] = 1
def add(parser): parser.add_argument("--old-name", help="see --not-one of them")
""",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    path = tmp_path / "lib-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return Wheel(path)


LOG = ("lib/log.py",)


@pytest.mark.parametrize(
    "check",
    [
        Named("variable", "LIB_DIR", LOG),
        Named("variable", "LIB_MODE", LOG),
        Named("attribute", "heads", ("lib/core.py",)),
        Named("attribute", "run", ("lib/*.py",)),
        Flag("tp_size"),
        Flag("tensor_parallel_size"),
        Flag("old_name"),
        Says(re.compile(r"Try for <(\w+)> N=(\d+), K=(\d+)"), LOG),
        Says(re.compile(r"Module \S+ failed after \d+s"), LOG),
        Says(re.compile(r"Nothing|Try for (?:it|<1>)"), LOG),
        Says(re.compile(r"MODULE \S+ failed", re.I), LOG),
        Says(re.compile(r"Modules?\b.* failed"), LOG),
        Says(re.compile(r"Module core failed after 3s"), LOG, fillings=("core", "3")),
        Says(re.compile(r"Capturing batches \(.*\| (\d+)/(\d+) \["), LOG, tail=BAR),
        Holds("Running: ", ("lib/_C.so",)),
        Without("Sleeping", ("lib/*",)),
        File("lib/*.so"),
        Calls("lib", "make", 2, ("need_lock", "more")),
        Calls("lib.core", "alias", 1, ("verbose",)),
        Calls("lib", "Layer", 1, ("block",)),
        Calls("lib", "Layer.run", 1),
        Calls("lib.core", "Config", 1),
        Calls("lib.core", "made"),
        Wants("lib.core", "Layer", ("size", "heads")),
        Item("lib", "MODELS", "Llama"),
        AnyOf((File("lib/none.py"), File("lib/log.py"))),
    ],
    ids=repr,
)
def test_holds(check: Check, wheel: Wheel) -> None:
    assert check.problem(wheel) == ""


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (Named("variable", "NOT_A_VARIABLE", LOG), "no code"),
        (Named("variable", "LIB_DIR", ("lib/core.py",)), "lib/core.py"),
        (Flag("not_one"), "no such flag"),
        (Says(re.compile("Explains? nothing"), LOG), "lib/log.py"),
        (Says(re.compile(r"Capturing batches \(.*\| (\d+)/(\d+) \["), LOG), "prints"),
        (Holds("Walking: ", ("lib/_C.so",)), "not in"),
        (Without("Running", ("lib/_C.so",)), "is in"),
        (File("lib/gone.py"), "not in the wheel"),
        (Calls("lib.gone", "build"), "no such module"),
        (Calls("lib", "gone"), "no gone"),
        (Calls("lib", "Layer.gone", 0), "no gone"),
        (Calls("lib", "make", 3), "spec, verbose, need_lock, others): too many positional"),
        (Calls("lib", "make", 1), "missing a required argument: 'verbose'"),
        (Calls("lib", "Layer", 1, ("shape",)), "unexpected keyword argument 'shape'"),
        (Calls("lib.core", "Config", 3), "too many positional"),
        (Calls("lib.core", "made", 0), "cannot be read"),
        (Wants("lib.core", "Config", ("width",)), "wants name too"),
        (Wants("lib.core", "gone", ()), "no such function"),
        (Item("lib", "MODELS", "Gemma"), "without it"),
        (Item("lib.core", "TYPES", "Llama"), "no such list"),
        (AnyOf((File("lib/none.py"), File("lib/nor.py"))), "not in the wheel"),
    ],
    ids=repr,
)
def test_says_why_it_does_not_hold(check: Check, why: str, wheel: Wheel) -> None:
    assert why in check.problem(wheel)


@pytest.mark.parametrize(
    ("version", "is_said"), [("0.5.17", False), ("0.5.18", True), ("0.5.20", True), ("0.5.21", False), ("1.0", False)]
)
def test_a_row_is_said_of_the_releases_from_its_first_to_its_last(version: str, is_said: bool) -> None:
    row = Contract(File("x"), "nothing", since="0.5.18", until="0.5.20")
    assert row.is_said_of(version) == is_said
