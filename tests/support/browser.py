"""Reports looked at in a real browser, offline: nothing may go wrong in it, and its figures must be its JSON's.

Needs Debian's ``chromium`` on the PATH (``make tools``); playwright brings its own driver.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.pages import assert_same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Start the browser. While it runs its thread has a running event loop, so no longer than needed."""
    program = shutil.which("chromium")
    assert program, "chromium is not on the PATH: make tools"
    with sync_playwright() as playwright:
        # The sandbox does not work for root, as whom CI runs, nor shared memory in small containers.
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], timeout=60_000
        )
        with contextlib.closing(chromium):
            yield chromium


@contextlib.contextmanager
def opened(browser: Browser, path: Path) -> Iterator[Page]:
    """Open a report; at the end fail where the browser complained of anything or asked for anything else."""
    complaints: list[str] = []
    with contextlib.closing(browser.new_context(offline=True)) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri(), wait_until="load", timeout=60_000)
        yield page
        assert complaints == []
        assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]


def data_of(page: Page) -> Any:
    """Return the JSON that the page carries."""
    return page.evaluate("JSON.parse(document.getElementById('data').textContent)")


def figures_of(page: Page) -> dict[str, list[str]]:
    """Return the visible text of every element with data-figure, by its path."""
    shown = page.evaluate(
        "[...document.querySelectorAll('[data-figure]')].map(each => [each.dataset.figure, each.innerText])"
    )
    figures: dict[str, list[str]] = {}
    for path, text in shown:
        figures.setdefault(path, []).append(text)
    return figures


def assert_figures_are(data: Any, page: Page) -> dict[str, list[str]]:
    """Compare every figure on the page with ``data``, to the last digit that it shows, and return them all."""
    assert data_of(page) == data
    figures = figures_of(page)
    assert_same(data, figures)
    return figures
