"""Reports as one self-contained HTML page: headline figures, texts, tables, pictures, and the JSON that they show.

Every number on a page is a :class:`Shown`, made by :func:`show` from the page's own data, so that what a reader sees
and what a script reads from the page (the element ``#data``) cannot differ. A page runs no script and asks no network.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTHING = "-"
"""What is shown where the data has null."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A value of the page's data as text, and the path at which it stands there, as ``run/mean/infAP``."""

    text: str
    path: str

    def __str__(self) -> str:
        """Return the text, for a terminal."""
        return self.text

    def __html__(self) -> str:
        """Return the text, with its path, for a template."""
        return f'<span data-figure="{html.escape(self.path)}">{html.escape(self.text)}</span>'


def show(data: Mapping[str, Any], *path: str | int, form: str = ".4f", unit: str = "") -> Shown:
    """Show the value at ``path`` of ``data`` in the format ``form``, whole numbers and texts as they are.

    A number of ``path`` is a position in a list.
    """
    value: Any = data
    for key in path:
        value = value[key]
    if value is None:
        text = NOTHING
    elif isinstance(value, float):
        text = f"{value:{form}}{unit}"
    else:
        text = f"{value:,}{unit}" if isinstance(value, int) and not isinstance(value, bool) else f"{value}{unit}"
    return Shown(text, "/".join(str(key).replace("~", "~0").replace("/", "~1") for key in path))


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure at the top; ``tone``: "gain", "loss" or nothing."""

    value: Shown
    label: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the columns at ``numeric`` stand to the right."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Shown | str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """An ``<svg>`` element (:func:`streamer.evaluation.plots.picture` makes it), and what it shows."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a title."""

    title: str
    parts: Sequence[Text | Table | Picture]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: ``data`` is its JSON."""

    title: str
    lead: str
    data: Mapping[str, Any]
    headline: Sequence[Headline] = ()
    sections: Sequence[Section] = field(default_factory=list)


def environment(*packages: str) -> jinja2.Environment:
    """Make templates of ``packages`` usable, with ``base.html.j2`` for them to extend."""
    loaders = [jinja2.PackageLoader(package, "templates") for package in (*packages, "streamer.evaluation")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def embedded(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand in a ``<script>`` element: no "<" in it can end the element."""
    return orjson.dumps(data).decode().replace("<", "\\u003c")


def render(page: Page) -> str:
    """Return the page's HTML."""
    template = environment().get_template("page.html.j2")
    return template.render(title=page.title, page=page, data=embedded(page.data))
