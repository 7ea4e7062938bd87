"""``streamer explain`` on a real Kafka, with real files through the real embedder and reranker, and its page."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from streamer.cli import cli
from tests.support import browser
from tests.support.driver import EMBEDDED, RERANKED, RESULTS, UPLOADED, Bus, Record, Service, apply_topics, environment
from tests.support.footage import BLUE, GREEN, RED, WHITE, YELLOW, scene, write_video
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka

AT = "2026-11-24T10:00:00Z"
SHAPES = {"red": RED, "green": GREEN, "blue": BLUE, "yellow": YELLOW}
RATE, FRAMES = 10, 30
PHONE = {"width": 390, "height": 844}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
QUERY = f"a red square {HOSTILE}"


def upload(clip_id: str, path: Path) -> Record:
    return Record.of(clip_id, {"clip_id": clip_id, "uri": f"file:{path}", "uploaded_at": AT})


def question(query_id: str, clips: list[str]) -> Record:
    results = [{"clip_id": clip_id, "score": 9.5 - place} for place, clip_id in enumerate(clips)]
    event = {"query_id": query_id, "query": QUERY, "engine": "e", "issued_at": AT, "results": results}
    return Record.of(query_id, event)


def explain(variables: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["explain", *arguments], env=variables)
    assert done.exit_code == code, f"{done.output} {done.exception!r}"
    return done.stdout if code == 0 else f"{done.output} {done.exception}"


def by_clip(data: Any) -> dict[str, Any]:
    return {each["clip_id"]: each for each in data["results"]}


def check_figures(data: Any, answer: Any, embedded: dict[str, Any]) -> None:
    for shown, served in zip(data["results"], answer["results"], strict=True):
        for name in ("clip_id", "rank", "score", "frame_score", "moment_ms"):
            assert shown[name] == served[name]
        parts = [Decimal(part) for part in shown["contributions"].values()]
        assert sum(parts) == Decimal(repr(served["score"]))
        if served["status"] == "not_embedded":
            assert shown["frame"]["why"] == "no frame of it was scored"
            continue
        assert shown["frame"] == {
            "is_shown": True, "moment_ms": served["moment_ms"], "origin": "file:", "why": None
        }  # fmt: skip
        record = shown["record"]
        moments = [record["embedded_at"], embedded[shown["clip_id"]]["embedded_at"]]
        assert len({dt.datetime.fromisoformat(each) for each in moments}) == 1
        assert record["vectors"] == embedded[shown["clip_id"]]["frames"] == len(shown["curve"]["times_ms"])
        assert abs(max(shown["curve"]["cosines"]) - served["frame_score"]) < 1e-5
        assert shown["differs"] in {"nothing", "rounding"}


def check_page(chromium: Browser, page: Path, data: Any) -> None:
    with browser.opened(chromium, page) as opened:
        opened.set_viewport_size(PHONE)  # type: ignore[arg-type]  # playwright's own type
        figures = browser.assert_figures_are(data, opened)
        assert {"sentence", "results/0/contributions/engine", "results/0/now/score"} <= figures.keys()
        assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert opened.locator("th:not([scope])").count() == 0
        assert opened.locator("img:not([alt])").count() == 0
        assert opened.locator("article img").count() == opened.locator("article svg").count() == len(SHAPES)
        sizes = "[...document.images].map(each => [each.complete, each.naturalWidth])"
        assert all(is_complete and width > 100 for is_complete, width in opened.evaluate(sizes))
        opened.emulate_media(color_scheme="dark")
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"


def test_an_answer_of_the_services_is_explained_with_its_frames(
    kafka: LocalKafka, topic_prefix: str, chromium: Browser, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    files = {
        name: write_video(clips / f"{name}.mp4", scene(FRAMES, shape=colour, ground=WHITE), RATE)
        for name, colour in SHAPES.items()
    }
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    # The services and the command must not choose different precisions, which would be another figure.
    variables = environment(bus, tmp_path / "store", [clips], STREAMER_DTYPE="float32", STREAMER_THREADS="1")
    own = {**variables, "COLUMNS": "160"}
    apply_topics(own, tmp_path)
    with Service("embed", own, tmp_path) as embed, Service("rerank", own, tmp_path) as rerank:
        for service in (embed, rerank):
            service.await_ready(seconds=240)
        bus.publish(UPLOADED, [upload(name, path) for name, path in files.items()])
        wait_until(lambda: len(bus.read(EMBEDDED)) == len(files), "the clips", seconds=240, alive=[embed])
        bus.publish(RESULTS, [question("q", ["absent", *files]), question("other", ["blue"])])
        wait_until(lambda: len(bus.read(RERANKED)) == 2, "the answers", seconds=120, alive=[rerank])
        [answer] = [each.event for each in bus.read(RERANKED) if each.event["query_id"] == "q"]
        embedded = {each.event["clip_id"]: each.event for each in bus.read(EMBEDDED)}

        page, written = tmp_path / "page.html", tmp_path / "data.json"
        told = explain(own, "q", "--html", str(page), "--json", str(written))
        data = json.loads(written.read_bytes())
        assert data["sentence"] in told
        assert (data["model_id"], data["query"]) == (answer["model_id"], QUERY)
        check_figures(data, answer, embedded)
        check_page(chromium, page, data)

        # One clip is replaced by another picture, one is deleted: neither is passed over in silence.
        files["red"].unlink()
        write_video(files["red"], scene(FRAMES, shape=GREEN, ground=BLUE), RATE)
        replaced = {"clip_id": "red", "uri": f"file:{files['red']}", "uploaded_at": "2026-11-25T10:00:00Z"}
        bus.publish(UPLOADED, [Record.of("red", replaced), Record.of("green", None)])
        bus.await_group("streamer-embed", UPLOADED, seconds=240, alive=[embed])

    explain(own, "q", "--json", str(written), "--html", str(page))
    found = by_clip(json.loads(written.read_bytes()))
    red, green = found["red"], found["green"]
    assert red["differs"] == "figures"
    assert red["now"]["frame_score"] != red["frame_score"]
    assert any("after the answer" in sentence for sentence in red["said"])
    assert (green["status"], green["curve"], green["frame"]) == ("deleted", None, None)

    now = json.loads(explain(own, "--query", QUERY, "--candidates-of", "q", "--json", "-"))
    assert by_clip(now)["red"]["frame_score"] == red["now"]["frame_score"]
    elsewhere = {**own, "STREAMER_ALLOWED_URIS": '["https://cdn.example/"]'}
    refused = json.loads(explain(elsewhere, "q", "--json", "-"))
    assert by_clip(refused)["blue"]["frame"]["why"].startswith("uri_refused: ")
    assert "there is no answer to query 'none'" in explain(own, "none", code=1)
    later = ("--since", (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat())
    assert "there is no answer to query 'q'" in explain(own, "q", *later, code=1)
