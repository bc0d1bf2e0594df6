"""Groups of commands that are imported when they run, and usage errors in which what was typed is shown as text."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from rayprep.base.text import printable

_UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Typer's: of the click that is installed, or since 0.26 of one of its own."""
_HELP = "NoArgsIsHelpError"
"""The usage error whose message is the help. Nothing of it was typed."""


class Commands(TyperGroup):
    """A group of commands. Typer itself shows an unknown option as it was typed, or but for some controls (0.29)."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - the types are those of either click
        """Return the command that was typed, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None or isinstance(command, TyperGroup) else _imported(name), rest

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
        if type(error).__name__ != _HELP:
            error.message = printable(error.message)
        raise


def app_of(name: str, help_text: str) -> typer.Typer:
    """Return a group without commands, `name` as it is called."""
    return typer.Typer(
        name=name,
        cls=Commands,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def declare(group: typer.Typer, commands: Mapping[str, str]) -> None:
    """Add commands by name, each with the first line of its help."""
    for name, line in commands.items():
        group.command(name, help=line)(_not_yet)


def _not_yet() -> None:
    """Stands for a command until it is known which one runs."""


def _imported(name: str) -> Any:  # noqa: ANN401
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name)(importlib.import_module(f"rayprep.cli.{name}").command)
    return typer.main.get_command(alone)
