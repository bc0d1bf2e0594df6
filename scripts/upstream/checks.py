"""What can be looked for in a wheel. Each check says why it does not hold, and nothing where it does."""

import ast
import re
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Protocol

from scripts.upstream.wheel import Definition, Wheel, method, signature

PYTHON = ("sglang/srt/*.py", "sglang/kernels/*.py", "sglang/jit_kernel/*.py", "flashinfer/*.py")
ARGUMENTS = ("sglang/srt/server_args.py", "sglang/srt/arg_groups/*.py")
"""Where SGLang's flags are, up to 0.5.19 in the first file alone."""
BAR = ":  50%|#####     | 1/2 [00:01<00:01,  1.00s/it]"
"""What tqdm writes behind a bar's text."""


class Check(Protocol):
    """One thing to look for; `str` names it for people."""

    def problem(self, wheel: Wheel) -> str:
        """Return why it does not hold; empty where it does."""


@dataclass(frozen=True)
class Named:
    """A name that some code has: a variable of the environment, an attribute, a field, a key."""

    what: str
    name: str
    where: tuple[str, ...] = PYTHON

    def __str__(self) -> str:
        return f"{self.what} {self.name}"

    def problem(self, wheel: Wheel) -> str:
        whole = re.compile(rb"(?<!\w)%b(?!\w)" % re.escape(self.name).encode())  # it spares the parsing
        files = (file for file in wheel.having(self.name, self.where) if whole.search(wheel.read(file)))
        held = any(self.name in wheel.words(file) for file in files)
        return "" if held else "no code names it" + ("" if self.where == PYTHON else f" in {_places(self.where)}")


@dataclass(frozen=True)
class Flag:
    """A flag of the server: declared with its dashes, or as a field that SGLang makes the flag of."""

    name: str
    """As SGLang's settings have it: `tp_size`."""

    def __str__(self) -> str:
        return f"flag --{self.name.replace('_', '-')}"

    def problem(self, wheel: Wheel) -> str:
        held = any(self.name in wheel.flags(file) for file in wheel.matching(ARGUMENTS))
        return "" if held else "no such flag is declared"


@dataclass(frozen=True)
class AnyOf:
    """One of several, whichever the release has."""

    checks: tuple[Check, ...]

    def __str__(self) -> str:
        return str(self.checks[0])

    def problem(self, wheel: Wheel) -> str:
        problems = [check.problem(wheel) for check in self.checks]
        return "" if "" in problems else problems[0]


_ESCAPED = re.compile(r"\\(\W)")


@dataclass(frozen=True)
class Says:
    """A text that a program prints, which rayprep's own expression has to find in it.

    Sources have the text with gaps, into which `fillings` go in turn, and the last into all others; `tail` goes behind.
    """

    pattern: re.Pattern[str]
    where: tuple[str, ...]
    fillings: tuple[str, ...] = ("1",)
    tail: str = ""

    def __str__(self) -> str:
        return "log line " + _ESCAPED.sub(r"\1", self.pattern.pattern)

    def problem(self, wheel: Wheel) -> str:
        files = wheel.having(_needed_word(self.pattern), self.where)
        texts = (text for file in files for text in wheel.texts(file, self.fillings))
        held = any(self.pattern.search(text + self.tail) for text in texts)
        return "" if held else f"nothing in {_places(self.where)} prints it"


def _needed_word(pattern: re.Pattern[str]) -> str:
    """Return a word that any text has which the pattern fits; empty where none is certain. It spares the parsing."""
    rest = re.sub(r"\\.|\[[^]]*\]", " ", pattern.pattern)
    while (shorter := re.sub(r"\([^()]*\)[?*]?", " ", rest)) != rest:
        rest = shorter
    certain = "|" not in rest and not pattern.flags & re.IGNORECASE
    return max(re.findall(r"\w{2,}(?![\w?*{])", rest), key=len, default="") if certain else ""


@dataclass(frozen=True)
class Holds:
    """A text that a file has, as it stands. For machine code, and for how a line of code is written."""

    text: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"text {self.text}"

    def problem(self, wheel: Wheel) -> str:
        held = any(self.text.encode() in wheel.read(file) for file in wheel.matching(self.where))
        return "" if held else f"it is not in {_places(self.where)}"


@dataclass(frozen=True)
class Without:
    """A text that no file has: rayprep does not know of what it names."""

    text: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"absence of {self.text}"

    def problem(self, wheel: Wheel) -> str:
        held = not any(self.text.encode() in wheel.read(file) for file in wheel.matching(self.where))
        return "" if held else f"it is in {_places(self.where)}"


@dataclass(frozen=True)
class File:
    """A file of the wheel; `*` stands for anything."""

    pattern: str

    def __str__(self) -> str:
        return f"file {self.pattern}"

    def problem(self, wheel: Wheel) -> str:
        return "" if wheel.matching((self.pattern,)) else "it is not in the wheel"


@dataclass(frozen=True)
class Calls:
    """A call: so many arguments by their place, and some by name. A class is called for an object of it."""

    module: str
    name: str
    """`Class.method` for a method."""
    places: int | None = None
    """None where the name is only imported."""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"function {self.module}:{self.name}"

    def problem(self, wheel: Wheel) -> str:
        owner, _, own = self.name.partition(".")
        if wheel.module(self.module) is None:
            return "there is no such module"
        definition = wheel.definition(self.module, owner)
        if definition is None:
            return f"the module has no {owner}"
        if own and not _has(definition, own):
            return f"{owner} has no {own}"
        return "" if self.places is None else self._refused(definition, own)

    def _refused(self, definition: Definition, own: str) -> str:
        called = method(definition, own) if own else signature(definition)
        if called is None:
            return "how it is called cannot be read"
        try:
            called.bind(*range(self.places or 0), **dict.fromkeys(self.names))
        except TypeError as error:
            return f"its signature is {_shown(called)}: {error}"
        return ""


@dataclass(frozen=True)
class Wants:
    """A call by name with those of some arguments that the function takes: it may want no other."""

    module: str
    name: str
    offered: tuple[str, ...]

    def __str__(self) -> str:
        return f"function {self.module}:{self.name}"

    def problem(self, wheel: Wheel) -> str:
        definition = wheel.definition(self.module, self.name)
        called = signature(definition) if definition else None
        if called is None:
            return "there is no such function"
        wanted = [name for name, one in called.parameters.items() if one.default is Parameter.empty]
        missing = [name for name in wanted if name not in self.offered]
        return f"it wants {', '.join(missing)} too" if missing else ""


@dataclass(frozen=True)
class Item:
    """A string in a list, or in anything else that a module has by a name."""

    module: str
    name: str
    item: str

    def __str__(self) -> str:
        return f"{self.item} in {self.module}:{self.name}"

    def problem(self, wheel: Wheel) -> str:
        definition = wheel.definition(self.module, self.name)
        if definition is None:
            return "there is no such list"
        held = any(isinstance(node, ast.Constant) and node.value == self.item for node in ast.walk(definition))
        return "" if held else "the list is without it"


def _has(owner: Definition, name: str) -> bool:
    return isinstance(owner, ast.ClassDef) and any(getattr(node, "name", None) == name for node in owner.body)


def _places(where: tuple[str, ...]) -> str:
    return " or ".join(where)


def _shown(called: Signature) -> str:
    return f"({', '.join(called.parameters)})"
