"""The demo's page for judged queries, as a browser shows it; tests/integration/test_demo.py looks at a real run's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from streamer.demo import report
from streamer.demo.report import Judged
from streamer.events import QueryReranked, RerankedCandidate, Status, now
from tests.support import browser
from tests.support.report_pages import OnePixel

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

SUMMARY: dict[str, Any] = {
    "map_before": 0.41249,
    "map_after": 0.875,
    "clips": 1234,
    "frames": 20_000,
    "queries": 2,
    "clips_per_s": 12.34,
    "events_per_s": 1234.5,
    "p50_ms": 7.77,
    "p95_ms": 15.04,
    "lag_records": 0,
}


def judged(query_id: str, before: float, after: float) -> Judged:
    results = [
        RerankedCandidate(f"<c{rank}>", rank, 1 / (rank + 2), 8 - rank, 9.5, 0.31, 500 * rank, Status.RERANKED)
        for rank in range(1, 7)
    ]
    results.append(RerankedCandidate("c7", 7, None, 1, 9.5, None, None, Status.BELOW_DEPTH))
    event = QueryReranked(
        query_id=query_id,
        query="a <red> bicycle & a dog",
        engine="e",
        issued_at=now(),
        reranked_at=now(),
        model_id="m",
        alpha=0.4,
        depth=6,
        normalization="minmax",
        degraded=None,
        results=results,
    )
    return Judged(event, frozenset({"<c1>", "<c3>"}), before, after)


def test_the_page_of_judged_queries_shows_what_summary_json_says(chromium: Browser, tmp_path: Path) -> None:
    queries = [judged("gains little", 0.5, 0.51), judged("gains most", 0.0, 1.0), judged("loses", 1.0, 0.25)]
    path = report.write(tmp_path / "report", summary=SUMMARY, queries=queries, pictures=OnePixel(), model="a model")
    found = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert found.items() >= SUMMARY.items()
    assert [answer["query_id"] for answer in found["answers"]] == ["gains most", "gains little", "loses"]
    with browser.opened(chromium, path) as page:
        figures = browser.assert_figures_are(found, page)
        assert figures["map_before"] == ["0.412"]
        assert figures["answers/0/results/1/climb"] == ["4"]
        assert "answers/0/results/4/climb" not in figures
        assert page.locator(".result.relevant").count() == 9
        pictures = page.locator("img")
        assert pictures.count() == 27
        pictures.last.scroll_into_view_if_needed()
        page.wait_for_function("[...document.images].at(-1).naturalWidth === 1")
        heights = page.evaluate("[...document.querySelectorAll('circle')].map(each => each.cy.baseVal.value)")
        values = [answer[side] for answer in found["answers"] for side in ("before", "after")]
        assert heights == pytest.approx([170 - 150 * value for value in values], abs=1e-3)
