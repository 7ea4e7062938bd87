"""Pages: numbers that carry their place in the page's JSON, and a browser check that does notice what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from streamer.evaluation.page import Headline, Page, Section, Table, Text, render, show
from tests.support import browser

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

DATA: dict[str, Any] = {
    "a/b~": [{"share": 0.123456, "count": 12345}, {"share": None, "count": 0}],
    "<name>": "<i>&",
    "small": 3.21e-12,
    "milliseconds": 15.26,
    "sentence": "This page says what it means.",
}


def page() -> str:
    cells = [show(DATA, "a/b~", row, key) for row in range(2) for key in ("share", "count")]
    table = Table("Shares", ["share", "count"], [cells[:2], cells[2:]], frozenset({0, 1}))
    headline = [
        Headline(show(DATA, "small", form=".2g"), "p"),
        Headline(show(DATA, "milliseconds", form=".1f", unit=" ms"), ""),
    ]
    sections = [Section("A <section>", [Text("a & b"), table, Table("Names", ["name"], [[show(DATA, "<name>")]])])]
    return render(Page("A title", show(DATA, "sentence"), "A lead", DATA, headline, sections))


@pytest.mark.parametrize(
    ("path", "form", "text", "where"),
    [
        (("a/b~", 0, "share"), ".4f", "0.1235", "a~1b~0/0/share"),
        (("a/b~", 0, "count"), ".4f", "12,345", "a~1b~0/0/count"),
        (("a/b~", 1, "share"), ".4f", "-", "a~1b~0/1/share"),
        (("small",), ".2g", "3.2e-12", "small"),
        (("<name>",), ".4f", "<i>&", "<name>"),
    ],
)
def test_a_value_is_shown_with_its_path(path: tuple[str | int, ...], form: str, text: str, where: str) -> None:
    shown = show(DATA, *path, form=form)
    assert (str(shown), shown.path) == (text, where)


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        show(DATA, "missing")


def test_a_page_is_whole_offline_and_true_to_its_data(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(), encoding="utf-8")
    with browser.opened(chromium, path) as shown:
        figures = browser.assert_figures_are(DATA, shown)
        assert figures == {
            "small": ["3.2e-12"],
            "milliseconds": ["15.3 ms"],
            "a~1b~0/0/share": ["0.1235"],
            "a~1b~0/0/count": ["12,345"],
            "a~1b~0/1/share": ["-"],
            "a~1b~0/1/count": ["0"],
            "<name>": ["<i>&"],
            "sentence": ["This page says what it means."],
        }
        assert shown.locator("h2").inner_text() == "A <section>"


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (">0.1235<", ">0.1236<"),
        (">12,345<", ">12,346<"),
        (">15.3 ms<", ">fast<"),
        ("0.123456", "0.123556"),
        ("</body>", "<img src='http://127.0.0.1:9/a.png'></body>"),
        ("</body>", "<img src='missing.png'></body>"),
        ("</body>", "<script>console.error('a fault')</script></body>"),
    ],
)
def test_the_check_in_the_browser_notices_what_is_wrong(
    chromium: Browser, tmp_path: Path, found: str, instead: str
) -> None:
    path = tmp_path / "page.html"
    assert page().count(found) >= 1
    path.write_text(page().replace(found, instead), encoding="utf-8")
    with pytest.raises(AssertionError), browser.opened(chromium, path) as shown:
        browser.assert_figures_are(DATA, shown)
