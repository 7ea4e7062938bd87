"""``streamer audit`` on the topics of a real Kafka, and its page in a browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from streamer.cli import cli
from streamer.codec import JSON
from streamer.events import Candidate, ClipUploaded, QueryReranked, QueryResults, RerankedCandidate, Status, now
from tests.support import browser
from tests.support.driver import Bus, Record, apply_topics, environment

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka

QUERIES = 60
CLIPS = ("x1", "y1", "x2", "y2")
PHONE = {"width": 390, "height": 844}


def uploads() -> list[Record]:
    """Return uploads of which each is the last one of its clip, and others that do not count."""

    def one(clip_id: str, side: str) -> Record:
        event = ClipUploaded(clip_id=clip_id, uri=f"file:///{clip_id}", uploaded_at=now(), attributes={"side": side})
        return Record(clip_id.encode(), JSON.encode(event))

    kept = [one(clip, clip[0]) for clip in CLIPS[:3]]
    return [one("x1", "replaced"), one("y2", "deleted"), Record(b"y2", None), Record(b"k", b"no event"), *kept]


def queries() -> tuple[list[Record], list[Record]]:
    """Return the engine's results, and the answers to all but one; two of three have y1 and y2 first."""
    asked, answered = [], []
    for number in range(QUERIES + 1):
        after = ("y1", "y2", "x1", "x2") if number % 3 else CLIPS
        query_id, at = f"q{number}", now()
        given = QueryResults(
            query_id=query_id, query=f"query {number}", engine="e", issued_at=at,
            results=[Candidate(clip_id=clip, score=1.0) for clip in CLIPS],
        )  # fmt: skip
        reranked = QueryReranked(
            query_id=query_id, query=given.query, engine="e", issued_at=at, reranked_at=at, model_id="m", alpha=0.4,
            depth=100, normalization="minmax", degraded=None,
            results=[
                RerankedCandidate(clip, rank, 1.0, CLIPS.index(clip) + 1, 1.0, 0.5, 500, Status.RERANKED)
                for rank, clip in enumerate(after, start=1)
            ],
        )  # fmt: skip
        asked.append(Record(query_id.encode(), JSON.encode(given)))
        answered.append(Record(query_id.encode(), JSON.encode(reranked)))
    return asked, answered[:-1]


def test_an_audit_of_the_topics_and_its_page(
    kafka: LocalKafka, topic_prefix: str, chromium: Browser, tmp_path: Path
) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    own = {**environment(bus, tmp_path / "store", []), "COLUMNS": "120"}
    apply_topics(own, tmp_path)
    asked, answered = queries()
    bus.publish("clips.uploaded", uploads())
    bus.publish("query.results", asked)
    bus.publish("query.reranked", answered)
    arguments = ["audit", "--answers-from-topic", "--from-topic", "--attributes-from-topic", "--top", "2"]
    files = ["--json", str(tmp_path / "audit.json"), "--html", str(tmp_path / "audit.html")]
    done = CliRunner().invoke(cli, [*arguments, *files], env=own, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "audit.json").read_bytes())
    assert found["sentence"] in done.stdout
    assert found["verdict"] == "shift"
    assert (found["queries"], found["left_out"]) == (QUERIES, {"unanswered": 1})
    assert (found["clips"], found["candidates_without_upload"]) == (3, QUERIES)
    (side,) = found["attributes"]
    assert [each["group"] for each in side["groups"]] == ["x", "y", "(unknown)"]
    x, y, unknown = side["groups"]
    assert [each["target"] for each in (x, y, unknown)] == [0.5, 0.25, 0.25]
    # The first two ranks have the same weight, and in two of three queries x loses one of them to the deleted y2.
    assert [each["exposure_before"] for each in (x, y, unknown)] == [0.5, 0.5, 0]
    assert [each["exposure_after"] for each in (x, y, unknown)] == pytest.approx([1 / 6, 0.5, 1 / 3])
    assert y["reranking"] == {"mean": 0, "low": 0, "high": 0}
    with browser.opened(chromium, tmp_path / "audit.html") as page:
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # playwright's own type
        figures = browser.assert_figures_are(found, page)
        assert {"sentence", "verdict", "attributes/0/awrf/gain/low", "attributes/0/groups/2/target"} <= figures.keys()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.locator("th:not([scope])").count() == 0
