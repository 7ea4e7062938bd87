"""What those do that the services have to do with: clients of the metrics port, and sources of clips."""

from __future__ import annotations

import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, TopicPartition

from tests.chaos.inputs import CE_CAUSE, extra_refused, extra_upload
from tests.chaos.scene import Outcome
from tests.chaos.signs import Rise
from tests.support.crowd import crowd
from tests.support.driver import EMBEDDED
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene

CLIENTS = 2_000
_PROBE_S = 5.0
_PROBES_IN_A_ROW = 3
"""Seconds that an orchestrator gives a probe, and how many must fail before it acts, as in deploy/kubernetes."""
_PAUSE_S = 0.25
_COUNTED_S = 5.0

DECODE_WORKERS = 2
"""Of an embedder."""
_OF_ONE_SOURCE = DECODE_WORKERS + 8
"""Uploads of one source that an embedder has under way at the same time."""
_SLOW = 80
"""Uploads of the slow source: more than all embedders have threads for, so that it could take all of them."""
_BESIDE = 12
_FULL_S = 10.0
_BESIDE_S = 25.0


def crowd_in(scene: Scene, step: Step) -> Outcome:
    """Have idle clients by the thousand on the port of probes and metrics, and probe like an orchestrator."""
    victim = scene.services[step.victim]
    refused = Rise([victim], "streamer_refused_connections_total")
    took: list[float] = []
    failed = worst = 0
    with crowd(victim.port, "silent", CLIENTS):
        until = time.monotonic() + step.seconds
        while time.monotonic() < until or 0 < failed < _PROBES_IN_A_ROW:
            began = time.monotonic()
            failed = 0 if _probe(victim.port) else failed + 1
            took.append(time.monotonic() - began)
            worst = max(worst, failed)
            time.sleep(_PAUSE_S)
    with suppress(TimeoutError):
        wait_until(refused.look, seconds=_COUNTED_S, what="clients to be refused", pause=_PAUSE_S)
    harm = [f"{worst} probes in a row failed at {victim.name}"] if worst >= _PROBES_IN_A_ROW else []
    note = f"{len(took)} probes, the slowest in {max(took):.2f} s; refused: {refused}"
    return Outcome(refused.everywhere, note, harm=harm)


def _probe(port: int) -> bool:
    with (
        suppress(OSError, HTTPException),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=_PROBE_S) as response,
    ):
        return bool(response.read() == b"ok\n")
    return False


def slow_down(scene: Scene, step: Step) -> Outcome:
    """Let a source serve slowly that has many uploads under many spellings; those of others must not wait for it."""
    draw, sources = scene.draw(step), scene.sources
    spellings, strangers = sources.spellings(), sources.strangers()
    most = _OF_ONE_SOURCE * len(scene.role(step.role))
    waiting = 0
    announcements = _Announcements(scene)
    try:
        with sources.slowed():
            began = time.monotonic()
            for number in range(_SLOW):
                # The spelling stands in the path too, which is all that the source sees of it.
                place = f"{spellings[number % len(spellings)]}/{number % len(spellings)}"
                scene.publisher.add(extra_upload(draw, place, draw.choice(sources.files)))
            for place in strangers:
                scene.publisher.add(extra_refused(draw, place, draw.choice(sources.files)))
            with suppress(TimeoutError):
                wait_until(lambda: sources.waiting().total() >= most, seconds=_FULL_S, what="slow downloads")
            waiting = sources.waiting().total()
            under_way = len(sources.waiting())
            beside = [
                extra_upload(draw, draw.choice((sources.fast, sources.folder.as_uri())), draw.choice(sources.files))
                for _ in range(_BESIDE)
            ]
            for each in beside:
                scene.publisher.add(each)
            missing = announcements.await_all({each.mark for each in beside}, seconds=_BESIDE_S)
            waiting = max(waiting, sources.waiting().total())
            time.sleep(max(0.0, began + step.seconds - time.monotonic()))
    finally:
        announcements.close()
    harm = [f"{len(missing)} uploads of other sources were held up"] if missing else []
    if waiting > most:
        harm.append(f"{waiting} downloads of one source at the same time, of at most {most}")
    return Outcome(waiting >= most and under_way > 1, f"{waiting} slow downloads, {under_way} spellings", harm=harm)


class _Announcements:
    """What embedders announce from now on."""

    def __init__(self, scene: Scene) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": scene.bus.bootstrap_servers,
                "group.id": scene.full("beside"),
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        ends = scene.ends(EMBEDDED)
        self._consumer.assign([TopicPartition(scene.full(EMBEDDED), number, end) for number, end in ends.items()])

    def await_all(self, marks: set[str], *, seconds: float) -> set[str]:
        """Return those of which no announcement has come after so many seconds."""
        missing = set(marks)
        deadline = time.monotonic() + seconds
        while missing and time.monotonic() < deadline:
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                headers = dict(message.headers() or [])
                mark = headers.get(CE_CAUSE, b"")
                missing.discard(mark.decode() if isinstance(mark, bytes) else "")
        return missing

    def close(self) -> None:
        """Read no more."""
        self._consumer.close()
