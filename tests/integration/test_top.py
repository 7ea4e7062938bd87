"""``streamer top`` on a real Kafka with an embedder and two rerankers, while the second one joins and leaves.

With STREAMER_TOP_SVG set, the frame with the rebalance is written there: ``make top-picture``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from streamer.codec import JSON
from streamer.events import Candidate, ClipUploaded, QueryResults, now
from streamer.kafka import Output
from streamer.kafka.readers.publish import publish
from streamer.settings import load
from streamer.top.targets import Target
from streamer.top.view import View
from streamer.top.watch import Watch
from tests.support.driver import Bus, Service, apply_topics, environment
from tests.support.footage import TINY_PALETTE, scene, write_video
from tests.support.terminals import on_a_terminal
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.local_kafka.broker import LocalKafka
    from streamer.settings import Settings
    from streamer.top.watch import Frame

STREAMER = Path(sys.executable).with_name("streamer")
WIDTH, HEIGHT = 118, 34
QUERIES = (
    "a red disc on white", "a blue square", "something green that moves", "a yellow disc on blue",
    "a purple shape on white", "white on black",
)  # fmt: skip
PARTITIONS = 12


def uploads(settings: Settings, folder: Path) -> list[str]:
    clips = []
    for number, (shape, ground) in enumerate(TINY_PALETTE):
        clip_id = f"clip-{number:04}"
        path = write_video(folder / f"{clip_id}.mp4", scene(20, shape=shape, ground=ground, disc=number % 2 == 0), 5)
        event = ClipUploaded(clip_id=clip_id, uri=path.as_uri(), uploaded_at=now())
        publish(settings, [Output(settings.topic("clips.uploaded"), clip_id.encode(), JSON.encode(event), ())])
        clips.append(clip_id)
    return clips


@contextlib.contextmanager
def asking(settings: Settings, clips: list[str]) -> Iterator[None]:
    """Publish some twenty queries a second, and now and then what is none."""
    stop = threading.Event()

    def questions() -> Iterator[Output]:
        chance = random.Random(7)  # noqa: S311 - a test's load
        for number in itertools.count():
            if stop.wait(0.05):
                return
            query_id = f"q{number}"
            ranked = chance.sample(clips, len(clips))
            candidates = [Candidate(clip_id=clip_id, score=9.0 - rank) for rank, clip_id in enumerate(ranked)]
            event = QueryResults(
                query_id=query_id, query=chance.choice(QUERIES), engine="e", issued_at=now(), results=candidates
            )
            value = b"no event" if number % 40 == 0 else JSON.encode(event)
            yield Output(settings.topic("query.results"), query_id.encode(), value, ())

    thread = threading.Thread(target=publish, args=(settings, questions()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


class Recorder:
    """Takes frames as a terminal of a fixed size shows them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.console = Console()
        self.text = ""

    def until(self, condition: Callable[[Frame], bool], *wanted: str, seconds: float = 120) -> str:
        """Look until a frame fulfils the condition and its picture shows what is wanted; return the picture's text."""

        def shows_all() -> bool:
            frame = self._watch.frame()
            with Path(os.devnull).open("w") as nowhere:
                self.console = Console(
                    width=WIDTH, height=HEIGHT, record=True, file=nowhere, force_terminal=True, color_system="truecolor"
                )
                self.console.print(View(frame, height=HEIGHT))
            self.text = self.console.export_text(clear=False)
            return condition(frame) and all(re.search(each, self.text) for each in wanted)

        wait_until(shows_all, lambda: f"{wanted} in\n{self.text}", seconds=seconds, pause=0.5)
        return self.text


def owned(frame: Frame, target: int) -> int:
    return len(frame.instances[target].lags)


@pytest.fixture
def system(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> tuple[Settings, dict[str, str]]:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, tmp_path / "store", [tmp_path])
    apply_topics(variables, tmp_path)
    return load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix}), variables


def test_a_rebalance_is_seen_as_it_happens(system: tuple[Settings, dict[str, str]], tmp_path: Path) -> None:
    settings, variables = system
    with contextlib.ExitStack() as stack:
        embed, first = (stack.enter_context(Service(name, variables, tmp_path)) for name in ("embed", "rerank"))
        for service in (embed, first):
            service.await_ready(seconds=150)
        clips = uploads(settings, tmp_path)
        stack.enter_context(asking(settings, clips))
        second = stack.enter_context(Service("rerank", {**variables, "STREAMER_INSTANCE_ID": "rerank-1"}, tmp_path))
        urls = [f"http://127.0.0.1:{service.port}" for service in (embed, first, second)]
        watch = stack.enter_context(contextlib.closing(Watch(settings, [Target(url) for url in urls], interval=0.5)))
        recorder = Recorder(watch)
        command = [str(STREAMER), "top", "--interval", "0.5", "--targets", ",".join(urls)]
        process, terminal = stack.enter_context(on_a_terminal(command, variables, width=WIDTH, height=HEIGHT))

        # It joins: partitions move, and both instances and their sum are there.
        text = recorder.until(
            lambda frame: owned(frame, 1) + owned(frame, 2) == PARTITIONS and owned(frame, 2) > 0,
            r"3 of 3 targets reachable",
            r"rerank +ready",
            r"all +rerank",
            r"rebalance \d+ s ago: -[\d,-]+",
            r"clip-000\d +\d +\d+\.\d s +\d+ ms",
            r"query\.results +not_json +q\d+",
        )
        assert any(query in text for query in QUERIES)
        [rate] = re.findall(r"all +rerank +([\d.]+) +([\d.]+)", text)
        assert float(rate[0]) > 0
        assert float(rate[1]) > 0
        if picture := os.environ.get("STREAMER_TOP_SVG"):
            # Whoever looks at it fetches nothing else: a font that is there will do.
            drawing = re.sub(r"@font-face\s*{[^}]*}\s*", "", recorder.console.export_svg(title="streamer top"))
            Path(picture).write_text(drawing, encoding="utf-8")

        # It leaves: the first one takes all, and its address is unreachable.
        second.stop()
        recorder.until(
            lambda frame: owned(frame, 1) == PARTITIONS and frame.instances[2].problem is not None,
            r"2 of 3 targets reachable",
            r"unreachable: Connection",
            r"0-11 +\d+ +rebalance \d+ s ago: \+[\d,-]+",
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        shown = terminal.text()
        assert re.search(r"rebalance \d+ s ago: -[\d,-]+", shown)
        assert "recent queries" in shown
        once = subprocess.run(
            [STREAMER, "top", "--once", "--interval", "0.5", "--targets", f"{urls[1]},{urls[2]}"],
            env={**variables, "COLUMNS": "60"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert once.returncode == 0, once.stderr
        assert "1 of 2 targets reachable" in once.stdout
        assert max(map(len, once.stdout.splitlines())) <= 60
        assert "\x1b" not in once.stdout


def test_top_once_exits_with_1_and_names_the_targets_if_none_is_reachable(kafka: LocalKafka, topic_prefix: str) -> None:
    done = subprocess.run(
        [STREAMER, "top", "--once", "--interval", "0.2", "--targets", "http://127.0.0.1:1"],
        env={
            **os.environ,
            "STREAMER_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "STREAMER_TOPIC_PREFIX": topic_prefix,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "0 of 1 targets reachable" in done.stdout
    assert "does not exist" in done.stdout
