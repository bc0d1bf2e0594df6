"""The report page of a run: one HTML file that needs nothing else, neither a network nor a script."""

from typing import TYPE_CHECKING

from rayprep.base import human
from rayprep.base.records import counted
from rayprep.base.text import printable
from rayprep.model.run_files import RunRecord
from rayprep.report.page import timeline
from rayprep.report.page.model import Page, page_of

if TYPE_CHECKING:
    from jinja2 import Environment


def render(record: RunRecord) -> str:
    """The page's text. Whatever the files of the run hold is shown as text that prints, and nothing of it as markup."""
    page = page_of(record)
    return _environment().get_template("page.html").render(page=page, anchors=_anchors(page), geometry=timeline)


def _anchors(page: Page) -> dict[str, str]:
    """A host's name can be anything, so what leads to its section is a number."""
    return {host.name: f"host-{number}" for number, host in enumerate(page.hosts)}


def _as_text(value: object) -> object:
    """Each value before it is escaped for HTML; what a macro made of some has been here already."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("rayprep.report.page", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=human.duration, size=human.size, counted=counted)
    return environment
