"""Usage errors in which what was typed is shown as text."""

import contextlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Typer's: of the click that is installed, or since 0.26 of one of its own."""
_HELP = "NoArgsIsHelpError"
"""The usage error whose message is the help. Nothing of it was typed."""


class Commands(TyperGroup):
    """A group of commands. Typer itself shows an unknown option as it was typed, or but for some controls (0.29)."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 - the types are those of either click
        with _shown_as_text():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        with _shown_as_text():
            return super().invoke(ctx)


@contextlib.contextmanager
def _shown_as_text() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        from rayprep.base.text import printable

        if type(error).__name__ != _HELP:
            error.message = printable(error.message)
        raise
