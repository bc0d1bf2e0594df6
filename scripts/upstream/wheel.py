"""One wheel, read where it is: its files, the strings in its code, and the signatures of its functions."""

import ast
import re
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import translate
from functools import cache
from inspect import Parameter, Signature
from itertools import zip_longest
from pathlib import Path

_GAP = re.compile(r"%(?:\(\w+\))?[-+ #0]*\d*(?:\.\d+)?[sdrfgi]")
"""A place in a text that `%` or a logger fills."""
_FLAG = re.compile(r"--[a-z][a-z0-9_-]*")
_WORDS: dict[type[ast.AST], tuple[str, ...]] = {
    **{ast.Constant: ("value",), ast.Name: ("id",), ast.Attribute: ("attr",), ast.keyword: ("arg",), ast.arg: ("arg",)},
    **{ast.FunctionDef: ("name",), ast.AsyncFunctionDef: ("name",), ast.ClassDef: ("name",)},
}
"""Where the parts of a program have their names."""
_STEPS = 5
"""Modules that a name is followed through, from one that imports it to the one that defines it."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Wheel:
    """The files of one wheel, each read once. Paths are as in it: `sglang/srt/environ.py`."""

    def __init__(self, path: Path) -> None:
        """Raise zipfile.BadZipFile where it is none."""
        self._zip = zipfile.ZipFile(path)
        self.names = tuple(file.filename for file in sorted(self._zip.infolist(), key=lambda file: file.file_size))
        """Those first that are soon read."""
        self._parsed: set[str] = set()
        self.read = cache(self._zip.read)
        self.matching = cache(self._matching)
        self.tree = cache(self._parse)
        self.words = cache(self._words)
        self.flags = cache(self._flags)
        self._strings = cache(self._gapped)

    def forget(self) -> None:
        """Drop all that was read, which takes some hundred megabytes. It is read again when it is asked for."""
        for kept in (self.read, self.tree, self.words, self.flags, self._strings):
            kept.cache_clear()
        self._parsed.clear()

    def _matching(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the files that one of the patterns fits; `*` fits slashes too."""
        wanted = re.compile("|".join(map(translate, patterns)))
        return tuple(name for name in self.names if wanted.match(name))

    def having(self, text: str, patterns: tuple[str, ...]) -> Iterator[str]:
        """Yield those of these files that have a text, with what need not be parsed any more before the rest."""
        names = sorted(self.matching(patterns), key=lambda name: name not in self._parsed)
        said = text.encode()
        return (name for name in names if said in self.read(name))

    def _parse(self, name: str) -> ast.Module:
        self._parsed.add(name)
        return ast.parse(self.read(name))

    def _words(self, name: str) -> frozenset[str]:
        """Return the names that a file's code has, and its strings that are one whole."""
        found: set[object] = set()
        for node in ast.walk(self.tree(name)):
            found.update(getattr(node, word) for word in _WORDS.get(type(node), ()))
        return frozenset(word for word in found if isinstance(word, str))

    def _flags(self, name: str) -> frozenset[str]:
        """Return the flags that a file's code declares, without dashes: in a string, or as a field of a class."""
        return frozenset(flag for node in ast.walk(self.tree(name)) for flag in _declared(node))

    def metadata(self) -> str:
        """Return the text of its METADATA."""
        (name,) = self.matching(("*.dist-info/METADATA",))
        return self.read(name).decode()

    def texts(self, name: str, fillings: Sequence[str]) -> Iterator[str]:
        """Yield each string of a file's code, with `fillings` where values go into it; the last of them also behind."""
        for first, *others in self._strings(name):
            filled = zip_longest(fillings[: len(others)], others, fillvalue=fillings[-1])
            yield first + "".join(filling + piece for filling, piece in filled)

    def _gapped(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return each string in pieces: what stands before, between and behind its gaps."""
        nodes = list(ast.walk(self.tree(name)))
        inner = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        plain = [node.value for node in nodes if isinstance(node, ast.Constant) and node not in inner]
        joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
        texts = [*(text for text in plain if isinstance(text, str)), *map(_with_gaps, joined)]
        return tuple(tuple(_GAP.split(text)) for text in texts)

    def module(self, dotted: str) -> str | None:
        """Return the file of a module; None where there is none."""
        path = dotted.replace(".", "/")
        return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in self.names), None)

    def definition(self, dotted: str, name: str, steps: int = _STEPS) -> Definition | None:
        """Return what a module's name is bound to, in whichever module of the wheel that is; None where it is not."""
        file = self.module(dotted)
        if file is None or not steps:
            return None
        found: Definition | None = None
        for node in _top(self.tree(file).body):
            if isinstance(node, ast.ImportFrom):
                found = found or self._imported(node, dotted, file, name, steps - 1)
            elif name in _bound(node) and (found is None or isinstance(found, ast.Assign)):
                assert isinstance(node, Definition)  # what is made of a class by its own name is called as it is
                found = node
        if isinstance(found, ast.Assign) and isinstance(found.value, ast.Name) and found.value.id != name:
            return self.definition(dotted, found.value.id, steps - 1) or found
        return found

    def _imported(self, node: ast.ImportFrom, dotted: str, file: str, name: str, steps: int) -> Definition | None:
        original = next((alias.name for alias in node.names if name == (alias.asname or alias.name)), None)
        if original is None:
            return None
        package = dotted.split(".") if file.endswith("/__init__.py") else dotted.split(".")[:-1]
        parents = package[: len(package) - node.level + 1] if node.level else []
        return self.definition(".".join([*parents, *([node.module] if node.module else [])]), original, steps)


def _declared(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _FLAG.fullmatch(node.value):
        yield node.value[2:].replace("-", "_")
    elif isinstance(node, ast.ClassDef):
        fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
        yield from (field.id for field in fields if isinstance(field, ast.Name))


def _with_gaps(parts: Sequence[ast.expr]) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts)


def _top(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those under an `if` or `try` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            handled = [inner for handler in getattr(node, "handlers", ()) for inner in handler.body]
            yield from _top([*node.body, *getattr(node, "orelse", ()), *handled])


def _bound(node: ast.stmt) -> tuple[str, ...]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def signature(definition: Definition) -> Signature | None:
    """Return how a function or class is called, without `self`; None where its code does not say it."""
    if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return Signature(_parameters(definition.args))
    if not isinstance(definition, ast.ClassDef):
        return None
    if (init := method(definition, "__init__")) is not None:
        return init
    fields = [(node.target, node.value) for node in definition.body if isinstance(node, ast.AnnAssign)]
    named = [(target.id, default) for target, default in fields if isinstance(target, ast.Name)]
    return Signature([_with(default, _plain(name)) for name, default in named]) if named else None


def method(definition: Definition, name: str) -> Signature | None:
    """Return how a class's method is called on an object; None where the class has none of the name."""
    body = definition.body if isinstance(definition, ast.ClassDef) else ()
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    return Signature(_parameters(found.args)[1:]) if found else None


def _parameters(args: ast.arguments) -> list[Parameter]:
    plain = [Parameter(arg.arg, Parameter.POSITIONAL_ONLY) for arg in args.posonlyargs]
    plain += [_plain(arg.arg) for arg in args.args]
    defaults = [*[None] * (len(plain) - len(args.defaults)), *args.defaults]
    keywords = [Parameter(arg.arg, Parameter.KEYWORD_ONLY) for arg in args.kwonlyargs]
    return [
        *map(_with, defaults, plain),
        *([Parameter(args.vararg.arg, Parameter.VAR_POSITIONAL)] if args.vararg else []),
        *map(_with, args.kw_defaults, keywords),
        *([Parameter(args.kwarg.arg, Parameter.VAR_KEYWORD)] if args.kwarg else []),
    ]


def _plain(name: str) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD)


def _with(default: ast.expr | None, parameter: Parameter) -> Parameter:
    return parameter if default is None else parameter.replace(default=default)
