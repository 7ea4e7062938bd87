"""Reports as self-contained HTML pages: a verdict, headline figures, texts, tables, pictures, and the JSON of all.

Every number on a page is a :class:`Shown`, made by :func:`show` from the page's own data, so that the displayed numbers
and the JSON in the page (the element ``#data``) cannot differ. A page runs no script and loads nothing from the
network. It can be read on a phone, in the dark, by keyboard and by a screen reader: tables and plots that are wider
than the window scroll within a region of their own, which has a name, and colours are the stylesheet's variables.
"""

from __future__ import annotations

import html
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
        """Return the text for a template, with its path if it has one."""
        if not self.path:
            return html.escape(self.text)
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

    @property
    def is_text(self) -> bool:
        """Return whether the value is words, which need more room than a number."""
        return not any(each.isdigit() for each in self.value.text) and len(self.value.text) > len(NOTHING)


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below a caption; the first cell of a row names it, the columns in ``numeric`` are right-aligned."""

    kind: ClassVar[str] = "table"
    caption: Shown | str
    columns: Sequence[str]
    rows: Sequence[Sequence[Shown | str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """An ``<svg>`` element, made by :func:`streamer.evaluation.plots.picture`, with its caption."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do next, each item a sentence."""

    kind: ClassVar[str] = "advice"
    items: Sequence[Shown | str]


@dataclass(frozen=True, slots=True)
class Settings:
    """Environment variables to paste into a shell, by their names."""

    kind: ClassVar[str] = "settings"
    caption: str
    variables: Mapping[str, Shown]

    def lines(self) -> Iterator[tuple[str, Shown, str]]:
        """Yield what stands before each value, the value, and what stands behind it: quotes where a shell needs them.

        A value with a single quote itself is written by :func:`shlex.quote`, which then is no figure of the page's.
        """
        for name, value in self.variables.items():
            quote = "" if shlex.quote(value.text) == value.text else "'"
            if "'" in value.text:
                yield f"export {name}=", Shown(shlex.quote(value.text), ""), ""
            else:
                yield f"export {name}={quote}", value, quote


Part = Text | Table | Picture | Advice | Settings


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page with its title."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Page:
    """A report; ``verdict`` says in its first sentence what it means, ``lead`` what it is of; ``data`` is its JSON."""

    title: str
    verdict: Shown
    lead: str
    data: Mapping[str, Any]
    headline: Sequence[Headline] = ()
    sections: Sequence[Section] = field(default_factory=list)


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
