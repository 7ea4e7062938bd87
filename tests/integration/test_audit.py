"""``streamer audit`` on the topics of a real Kafka, and its page in a browser."""

from __future__ import annotations

import datetime as dt
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from streamer.cli import cli
from streamer.codec import JSON
from streamer.events import Candidate, ClipUploaded, QueryReranked, QueryResults, RerankedCandidate, Status, now
from streamer.kafka.outputs import GROUP
from tests.support import browser
from tests.support.dashboards import PANELS
from tests.support.driver import Bus, Record, Service, apply_topics, environment
from tests.support.load import Metrics
from tests.support.monitored import Prometheus
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka

QUERIES = 60
CLIPS = ("x1", "y1", "x2", "y2")
PHONE = {"width": 390, "height": 844}


def uploads() -> list[Record]:
    """Return uploads of which each is the last one of its clip, and others that do not count."""

    before, then = now() - dt.timedelta(minutes=1), now()

    def one(clip_id: str, side: str, at: dt.datetime) -> Record:
        event = ClipUploaded(clip_id=clip_id, uri=f"file:///{clip_id}", uploaded_at=at, attributes={"side": side})
        return Record(clip_id.encode(), JSON.encode(event))

    kept = [one(clip, clip[0], then) for clip in CLIPS[:3]]
    return [
        one("x1", "replaced", before),
        one("y2", "deleted", before),
        Record(b"y2", None),
        Record(b"k", b"no event"),
        *kept,
    ]


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


def test_exposure_is_counted_as_answers_come(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    own = environment(bus, tmp_path / "store", [])
    group = f"{topic_prefix}streamer-rerank"
    _, answered = queries()
    ours = [Record(each.key, each.value, ((GROUP, group.encode()),)) for each in answered]
    arguments = "--attribute", "side", "--top", "2", "--interval", "0.2"
    with Service("exposure", own, tmp_path, *arguments) as exposure:
        wait_until(lambda: "does not exist; streamer topics apply creates it" in unready(exposure), alive=[exposure])
        apply_topics(own, tmp_path)
        exposure.await_ready()
        exposure.stop()
    bus.publish("clips.uploaded", uploads())
    bus.publish("query.reranked", [*answered, *ours])  # before it begins
    with Service("exposure", own, tmp_path, *arguments) as exposure:
        exposure.await_ready()
        bus.publish("query.reranked", [*answered[:3], *ours])
        wait_until(lambda: Metrics(exposure).total("streamer_exposure_queries_total") >= QUERIES, alive=[exposure])
        wait_until(lambda: Metrics(exposure).total("streamer_exposure_left_out_total") == 3, alive=[exposure])
        counted = Metrics(exposure)
        with Prometheus(tmp_path / "prometheus", {"streamer-exposure": [exposure.port]}) as prometheus:
            assert_the_dashboard_has_data(prometheus, bus, [*answered[:3], *ours])
        exposure.stop()
    assert counted.total("streamer_exposure_queries_total") == QUERIES
    assert counted.total("streamer_exposure_left_out_total", reason="other_group") == 3
    expected = {
        "candidates": (QUERIES / 2, QUERIES / 4, QUERIES / 4),
        "engine": (QUERIES / 2, QUERIES / 2, 0),
        "reranked": (QUERIES / 6, QUERIES / 2, QUERIES / 3),
    }
    for order, totals in expected.items():
        found = [
            counted.total("streamer_exposure_total", order=order, attribute="side", value=value)
            for value in ("x", "y", "(unknown)")
        ]
        assert found == pytest.approx(totals)


def assert_the_dashboard_has_data(prometheus: Prometheus, bus: Bus, answers: list[Record]) -> None:
    queries = [query for panel in PANELS for query in panel.resolved("10s") if "streamer_exposure" in query]
    assert len(queries) >= 5

    def complete() -> bool:
        bus.publish("query.reranked", answers)
        return all(prometheus.query(query) for query in queries)

    wait_until(complete, "data of all queries", pause=0.5)
    reranked = next(query for query in queries if 'order="reranked"' in query)
    shares = {each["metric"]["value"]: float(each["value"][1]) for each in prometheus.query(reranked)}
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)


def unready(service: Service) -> str:
    """Return what the readiness probe says; nothing before the port is open."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/readyz", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


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
