"""Every report in a browser: wide and narrow, in the light and in the dark, and as axe judges it.

With REPORT_PICTURES set, pictures of the pages are written there for the documentation: ``make report-pictures``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import axe, browser, pages, report_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = {1400: 1000, 390: 844}
"""Widths of the window, with their heights."""
RUNS_OUT = """[...document.querySelectorAll('.verdict, .figure, .query, .advice li, figcaption, p, h1, h2, h3')]
    .filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("name", report_pages.NAMES)
def test_each_page_can_be_read_wide_and_narrow_in_light_and_dark(name: str, chromium: Browser, tmp_path: Path) -> None:
    path, _ = report_pages.write(name, tmp_path)
    with browser.opened(chromium, path) as page:
        browser.assert_figures_are(pages.data_of(path.read_text(encoding="utf-8")), page)
        for width, height in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(RUNS_OUT) == []
            if folder := os.environ.get("REPORT_PICTURES"):
                page.screenshot(path=Path(folder) / f"{name}-{width}.png")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert axe.grave(page) == []


def test_a_plot_is_dark_where_the_page_is(chromium: Browser, tmp_path: Path) -> None:
    path, _ = report_pages.write("comparison", tmp_path)
    colours = "[...document.querySelectorAll('figure svg text')].map(each => getComputedStyle(each).fill)"
    with browser.opened(chromium, path) as page:
        page.emulate_media(color_scheme="dark")
        ground = page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
        assert ground == "rgb(26, 32, 40)"
        assert set(page.evaluate(colours)) == {"rgb(230, 235, 241)"}


@pytest.mark.parametrize(
    ("found", "instead", "violation"),
    [
        ('role="img" aria-label="', 'role="img" data-label="', "svg-img-alt"),
        ("--soft: #566472", "--soft: #d0d4d8", "color-contrast"),
        ('lang="en"', "", "html-has-lang"),
    ],
)
def test_the_check_by_axe_notices_what_is_wrong(
    found: str, instead: str, violation: str, chromium: Browser, tmp_path: Path
) -> None:
    path, _ = report_pages.write("run", tmp_path)
    text = path.read_text(encoding="utf-8")
    assert found in text
    path.write_text(text.replace(found, instead), encoding="utf-8")
    with browser.opened(chromium, path) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.emulate_media(color_scheme="light")
        assert any(each.startswith(f"{violation} ") for each in axe.grave(page))
