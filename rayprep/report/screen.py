"""Lines and tables on a terminal, in a pipe or in a file. Whatever is not ours gets there as text that prints.

Nothing else here or in the commands prints: a line ends where the call ends, and no text in it can end it earlier.
"""

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TextIO

from rayprep.base.text import printable, printable_json

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text


def write_line(text: str, stream: TextIO) -> None:
    """Writes one line, at once. Raises OSError where nobody reads it any more."""
    print(printable(text), file=stream, flush=True)


def write_trace(problem: BaseException, stream: TextIO) -> None:
    """Write where an exception came from, as Python shows it."""
    for part in traceback.format_exception(problem):
        for line in part.rstrip("\n").split("\n"):
            write_line(line, stream)


def write_json(text: str, stream: TextIO) -> None:
    """Writes JSON text and a newline, at once; the value is the same in any encoding. Raises OSError as above."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(printable_json(text.removesuffix("\n"), encoding), file=stream, flush=True)


def styled(*parts: str | tuple[str, str]) -> "Text":
    """Text for a cell or a line, each part with a style of rich's or none. It holds no markup and no escapes."""
    from rich.text import Text

    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((printable(text), style) for text, style in pairs))


class Grid:
    """A table without lines."""

    def __init__(self, *, title: str = "", show_header: bool = True) -> None:
        from rich.table import Table

        heading = styled(title) if title else None
        self.table = Table(box=None, pad_edge=False, title=heading, title_justify="left", show_header=show_header)

    def column(
        self,
        heading: str = "",
        *,
        justify: Literal["left", "right"] = "left",
        no_wrap: bool = False,
        overflow: Literal["fold", "ellipsis"] = "ellipsis",
    ) -> None:
        self.table.add_column(heading, justify=justify, no_wrap=no_wrap, overflow=overflow)

    def row(self, *cells: "str | tuple[str, str] | Text") -> None:
        """Adds a row; a cell is text, text with a style, or what `styled` made."""
        self.table.add_row(*(styled(cell) if isinstance(cell, str | tuple) else cell for cell in cells))

    def cells(self, column: int) -> list[str]:
        """What stands in a column."""
        return [str(cell) for cell in self.table.columns[column].cells]


class Screen:
    """A console that shows text and grids, on standard output unless a stream is given."""

    def __init__(self, stream: TextIO | None = None, *, width: int | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)

    @property
    def height(self) -> int:
        """In lines."""
        return self._console.height

    def line(self, text: str, style: str = "") -> None:
        """Shows one line, however long: what wraps it, if anything, is the terminal."""
        self._console.print(styled((text, style)), soft_wrap=True)

    def cut_line(self, text: str) -> None:
        """Shows as much of a line as fits."""
        self._console.print(styled(text), no_wrap=True, overflow="ellipsis")

    def grid(self, grid: Grid) -> None:
        self._console.print(grid.table)

    def live(self, draw: Callable[[], Grid]) -> "Live":
        """A grid below all lines, drawn again four times a second while the context manager is open."""
        from rich.live import Live

        return Live(console=self._console, get_renderable=lambda: draw().table, refresh_per_second=4)
