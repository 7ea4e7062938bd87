"""Reports without a browser: what is wrong in the structure of their HTML, and whether figures are the JSON's."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from decimal import Decimal
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
_VOID = {"meta", "img", "br", "link", "input", "hr"}
_DRAWN = {"line", "circle", "path", "use", "rect"}
_FIXED_COLOUR = re.compile(r"#[0-9a-fA-F]{3,6}\b|\bblack\b|\bwhite\b")
_HEADING = re.compile(r"h[1-6]")


@dataclass
class Element:
    """An element with its attributes, what it contains, and what contains it."""

    tag: str
    attributes: dict[str, str]
    within: Element | None = None
    parts: list[Element | str] = field(default_factory=list)

    def all(self, *tags: str) -> Iterator[Element]:
        """Yield the elements below, in their order; only those of ``tags`` if any are given."""
        for part in self.parts:
            if isinstance(part, Element):
                if not tags or part.tag in tags:
                    yield part
                yield from part.all(*tags)

    def text(self) -> str:
        """Return the text within, with white space as a browser shows it."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for part in self.parts:
            if isinstance(part, str):
                yield part
            else:
                yield from part._texts()

    def inside(self) -> Iterator[Element]:
        """Yield the elements around this one, from the nearest one."""
        if self.within is not None:
            yield self.within
            yield from self.within.inside()


class _Tree(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.last = Element("", {})
        self.feed(text)
        self.close()
        assert self.last is self.root, f"<{self.last.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.last)
        self.last.parts.append(element)
        if tag not in _VOID:
            self.last = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.last.parts.append(Element(tag, {name: value or "" for name, value in attrs}, self.last))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        # A paragraph is closed by what follows it nowhere here: each element has its end.
        assert self.last.tag == tag, f"</{tag}> closes <{self.last.tag}>"
        assert self.last.within is not None
        self.last = self.last.within

    def handle_data(self, data: str) -> None:
        self.last.parts.append(data)


def parsed(page: str) -> Element:
    """Return the root of a page; fails where elements are not nested."""
    return _Tree(page).root


def problems(page: str) -> list[str]:
    """Return what is wrong in a page's structure, in words."""
    return list(_problems(parsed(page)))


def _problems(root: Element) -> Iterator[str]:
    yield from _document(root)
    yield from _headings(root)
    yield from _verdict(root)
    for table in root.all("table"):
        yield from _table(table)
    for svg in root.all("svg"):
        yield from _drawing(svg)
    for each in root.all("pre"):
        if not _scrolls(each):
            yield "settings outside of a box that scrolls"


def _document(root: Element) -> Iterator[str]:
    ids = [each.attributes["id"] for each in root.all() if "id" in each.attributes]
    (html,) = root.all("html")
    wrong = {
        "no language": not html.attributes.get("lang"),
        "no title": not any(each.text() for each in root.all("title")),
        "no viewport": not any(each.attributes.get("name") == "viewport" for each in root.all("meta")),
        "not one main": len(list(root.all("main"))) != 1,
        "an image without a text": any(not each.attributes.get("alt") for each in root.all("img")),
        "an image from elsewhere": any(not each.attributes["src"].startswith("data:") for each in root.all("img")),
        "an id that occurs twice": len(set(ids)) < len(ids),
        "a script": any(each.attributes.get("type") != "application/json" for each in root.all("script")),
    }
    yield from (problem for problem, is_there in wrong.items() if is_there)


def _drawing(svg: Element) -> Iterator[str]:
    if svg.attributes.get("role") != "img" or not svg.attributes.get("aria-label"):
        yield "a picture without a text"
    if not any(text.text() for text in svg.all("text")):
        yield "a picture without names of its axes"
    if not _scrolls(svg):
        yield "a picture outside of a box that scrolls"
    for each in svg.all(*_DRAWN, "text"):
        style = " ".join(each.attributes.get(name, "") for name in ("style", "fill", "stroke"))
        if _FIXED_COLOUR.search(style):
            yield f"a colour that stays in the dark: {style}"


def _headings(root: Element) -> Iterator[str]:
    levels = [int(each.tag[1]) for each in root.all() if _HEADING.fullmatch(each.tag)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "not one first heading"
    for before, after in itertools.pairwise(levels):
        if after > before + 1:
            yield f"h{after} follows h{before}"


def _verdict(root: Element) -> Iterator[str]:
    (main,) = root.all("main")
    first, second = [each for each in main.parts if isinstance(each, Element)][:2]
    if first.tag != "h1" or second.attributes.get("class") != "verdict":
        yield "no verdict below the title"
    elif not re.match(r"[A-Z0-9].{15,}\.$", second.text()):
        yield f"the verdict is no sentence: {second.text()}"


def _table(table: Element) -> Iterator[str]:
    caption = next((each.text() for each in table.all("caption")), "")
    if not caption:
        yield "a table without a caption"
    if not _scrolls(table):
        yield f"{caption}: outside of a box that scrolls"
    for each in table.all("th"):
        if each.attributes.get("scope") not in {"col", "row"} or not each.text():
            yield f"{caption}: a heading without a scope or text: {each.text()}"
    (body,) = table.all("tbody")
    width = len([each for each in table.all("th") if each.attributes.get("scope") == "col"])
    for row in body.all("tr"):
        cells = [each for each in row.parts if isinstance(each, Element)]
        if len(cells) != width:
            yield f"{caption}: {len(cells)} cells below {width} headings"
        if cells[0].attributes.get("scope") != "row":
            yield f"{caption}: a row without a heading"


def _scrolls(element: Element) -> bool:
    """Say whether a box around the element scrolls, can be reached by keyboard, and has a name."""
    return any(
        each.attributes.get("class") == "scroll"
        and each.attributes.get("tabindex") == "0"
        and each.attributes.get("role") == "region"
        and each.attributes.get("aria-label")
        for each in element.inside()
    )


def data_of(page: str) -> Any:
    """Return the JSON that a page carries."""
    (script,) = [each for each in parsed(page).all("script") if each.attributes.get("id") == "data"]
    return json.loads("".join(part for part in script.parts if isinstance(part, str)))


def figures_of(page: str) -> dict[str, list[str]]:
    """Return the text of every element with data-figure, by its path."""
    figures: dict[str, list[str]] = {}
    for each in parsed(page).all():
        if "data-figure" in each.attributes:
            text = "".join(part for part in each.parts if isinstance(part, str))
            figures.setdefault(each.attributes["data-figure"], []).append(text)
    return figures


def assert_same(data: Any, figures: dict[str, list[str]]) -> None:
    """Compare every figure with ``data``, to the last digit that it shows."""
    assert figures
    for path, texts in figures.items():
        value = data
        for key in path.split("/"):
            name = key.replace("~1", "/").replace("~0", "~")
            value = value[int(name)] if isinstance(value, list) else value[name]
        for text in texts:
            assert same(value, text), f"{path} is {value!r} and shown as {text!r}"


def same(value: Any, text: str) -> bool:
    """Say whether ``text`` shows ``value``, which it may round and give a unit."""
    if value is None:
        return text == "-"
    if isinstance(value, str):
        return " ".join(text.split()) == " ".join(value.split())
    match = NUMBER.match(text)
    if match is None:
        return False
    shown = Decimal(match[0].replace(",", ""))
    half_a_digit = Decimal(1).scaleb(int(shown.as_tuple().exponent)) / 2
    return abs(shown - Decimal(value)) <= half_a_digit


def palettes(page: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the colours of a page's variables in the light and in the dark."""
    style = next(parsed(page).all("style"))  # the page's own; a plot has another one
    css = "".join(part for part in style.parts if isinstance(part, str))
    light, dark, *_ = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    one, other = (dict(re.findall(r"--(\w+): (#\w{6})", each)) for each in (light, dark))
    return one, one | other


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, "#rrggbb", as WCAG 2 defines it."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in values]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
