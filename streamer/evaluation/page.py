"""Reports as self-contained HTML pages: headline figures, texts, tables, pictures, and the JSON of all figures.

Every number on a page is a :class:`Shown`, made by :func:`show` from the page's own data, so that the displayed numbers
and the JSON in the page (the element ``#data``) cannot differ. A page runs no script and loads nothing from the
network.
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
"""The text for null values."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A value of the page's data as text, with its path in the data, such as ``run/mean/infAP``."""

    text: str
    path: str

    def __str__(self) -> str:
        """Return the text for a terminal."""
        return self.text

    def __html__(self) -> str:
        """Return the text with its path for a template."""
        return f'<span data-figure="{html.escape(self.path)}">{html.escape(self.text)}</span>'


def show(data: Mapping[str, Any], *path: str | int, form: str = ".4f", unit: str = "") -> Shown:
    """Format the value at ``path`` of ``data`` by ``form``; integers and texts are not formatted.

    A number in ``path`` is a list index.
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
    """One headline figure; ``tone``: "gain", "loss" or empty."""

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
    """Rows of cells; the columns in ``numeric`` are right-aligned."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Shown | str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """An ``<svg>`` element, made by :func:`streamer.evaluation.plots.picture`, and its caption."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page with its title."""

    title: str
    parts: Sequence[Text | Table | Picture]


@dataclass(frozen=True, slots=True)
class Page:
    """A report; ``data`` is its JSON, and ``verdict`` what it means, in a sentence."""

    title: str
    lead: str
    data: Mapping[str, Any]
    headline: Sequence[Headline] = ()
    sections: Sequence[Section] = field(default_factory=list)
    verdict: Shown | None = None


def environment(*packages: str) -> jinja2.Environment:
    """Return an environment with the templates of ``packages`` and ``base.html.j2``, which they extend."""
    loaders = [jinja2.PackageLoader(package, "templates") for package in (*packages, "streamer.evaluation")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def embedded(data: Mapping[str, Any]) -> str:
    """Return JSON for a ``<script>`` element, with "<" escaped so that it cannot end the element."""
    return orjson.dumps(data).decode().replace("<", "\\u003c")


def render(page: Page) -> str:
    """Return the page's HTML."""
    template = environment().get_template("page.html.j2")
    return template.render(title=page.title, page=page, data=embedded(page.data))
