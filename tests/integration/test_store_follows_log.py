"""The store ends as the log says, on a real broker and a real store, whatever is repeated, late or handed over.

Two instances share a process, so that one can be held up at a chosen point: its loop, as a process that is stopped
for longer than its group waits, or its store. The store's engine and the records are those of two processes.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer import embedder
from streamer.codec import JSON
from streamer.embedder import Embedder
from streamer.events import ClipEmbedded, ClipUploaded
from streamer.health import Health
from streamer.kafka import Loop, Output, Stop
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.commit.outcomes import AbortedError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.readers.publish import publish
from streamer.metrics import Metrics
from streamer.settings import Settings, load
from streamer.store import Position, PutOutcome, open_store
from streamer.topology import EMBED
from streamer.video.fetching.fetcher import Fetcher
from tests.support.encoders import FakeEncoder
from tests.support.footage import BLUE, GREEN, RED, write_video
from tests.support.in_process import InProcessDecoder
from tests.support.loops import read
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import InFlightRecord, Record
    from streamer.local_kafka.broker import LocalKafka
    from streamer.store import Clip, Store

DIM = 3
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LOOKS = {"red": RED, "green": GREEN, "blue": BLUE}
EVICTED_AFTER_MS = 6_000


@dataclass(frozen=True)
class Upload:
    """An upload of a clip: its version, in seconds, and what it looks like."""

    clip_id: str
    version: int
    look: str


@dataclass(frozen=True)
class Delete:
    clip_id: str


Event = Upload | Delete


def what_the_log_says(log: Sequence[Event]) -> dict[str, tuple[int, str] | None]:
    """Work out by versions alone what is stored in the end; each clip's first event is an upload."""
    highest: dict[str, int] = {}
    live: dict[str, tuple[int, str] | None] = {}
    for event in log:
        clip_id = event.clip_id
        if isinstance(event, Delete):
            live[clip_id] = None
        elif clip_id not in highest or event.version > highest[clip_id] - (live[clip_id] is not None):
            highest[clip_id] = event.version
            live[clip_id] = event.version, event.look
    return live


def position_of(record: Record) -> Position:
    return Position.of(record.log, record.offset, record.leader_epoch)


class Gate:
    """A real store whose writes wait while the gate is shut; those that wait are on their way already."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open = threading.Event()
        self._open.set()
        self.waiting = threading.Event()
        self.calls: list[list[Position]] = []
        self.outcomes: list[PutOutcome] = []

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def _pass(self, positions: list[Position]) -> None:
        self.calls.append(positions)
        if not self._open.is_set():
            self.waiting.set()
            assert self._open.wait(120)

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        self._pass([clip.position for clip in clips])
        outcomes = self._store.put(clips)
        self.outcomes += outcomes
        return outcomes

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        self._pass([position])
        return self._store.delete(clip_id, deleted_at, position)


class Instance:
    """One embedder with its consume loop, in threads of this process."""

    def __init__(self, settings: Settings, name: str, files: Path) -> None:
        own = settings.model_copy(update={"instance_id": name})
        self._store = open_store(settings.store, model_id="colour", dim=DIM, precision="float32")
        self.gate = Gate(self._store)
        self.metrics = Metrics()
        self.works: list[InFlightRecord] = []
        self._output = own.topic(EMBED.output)
        self._stop = Stop()
        self._freeze_after: int | None = None
        self._thaw = threading.Event()
        health = Health(self.metrics)
        loop = Loop(
            own,
            EMBED,
            max_records=embedder.MAX_RECORDS,
            metrics=self.metrics,
            health=health,
        )
        gated: Any = self.gate
        encoder = FakeEncoder()
        self._pipeline = Embedder(
            own,
            encoder=encoder,
            codec=JSON,
            store=gated,
            fetcher=Fetcher([files.as_uri()], max_bytes=1 << 24, timeout=5),
            decoder=InProcessDecoder(encoder.prepare),
            metrics=self.metrics,
            health=health,
        )
        self._thread = threading.Thread(target=loop.run, args=(self, self._stop), daemon=True)
        self._thread.start()

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        """Pass on what the loop hands over; this is the loop's thread, so it can be frozen here."""
        self.works += works
        self._pipeline.submit(works)
        if self._freeze_after is not None and len(self.works) >= self._freeze_after:
            assert self._thaw.wait(120)

    def freeze_after(self, records: int) -> None:
        """Stop the loop, not its pipeline, when it has handed over ``records`` more."""
        self._freeze_after = len(self.works) + records

    def thaw(self) -> None:
        self._freeze_after = None
        self._thaw.set()

    @property
    def has_finished_its_work(self) -> bool:
        return all(work.outputs is not None for work in self.works)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def committed_uploads(self) -> float:
        return self.count("streamer_events_produced_total", topic=self._output)

    def end(self) -> None:
        self.gate.open()
        self.thaw()
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        wait_until(lambda: self.has_finished_its_work)
        self._store.close()


class Stage:
    """The topics, the files, the store and the instances of one test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._instances: list[Instance] = []
        self.log: list[Event] = []
        for look, colour in LOOKS.items():
            write_video(folder / f"{look}.mp4", [np.full((64, 64, 3), colour, np.uint8)] * 3, 10)
        self._store = open_store(settings.store, model_id="colour", dim=DIM, precision="float32")

    def start(self, name: str) -> Instance:
        self._instances.append(Instance(self.settings, name, self._folder))
        return self._instances[-1]

    def end(self, instance: Instance) -> None:
        self._instances.remove(instance)
        instance.end()

    def close(self) -> None:
        for instance in [*self._instances]:
            self.end(instance)
        self._store.close()

    def feed(self, *events: Event) -> None:
        self.log += events
        publish(self.settings, (self._record(event) for event in events))

    def _record(self, event: Event) -> Output:
        value = None
        if isinstance(event, Upload):
            uploaded_at = FIRST + dt.timedelta(seconds=event.version)
            uri = (self._folder / f"{event.look}.mp4").as_uri()
            value = JSON.encode(ClipUploaded(clip_id=event.clip_id, uri=uri, uploaded_at=uploaded_at))
        return Output(self.settings.topic(EMBED.input), event.clip_id.encode(), value, ())

    @property
    def uploads(self) -> int:
        return sum(isinstance(event, Upload) for event in self.log)

    def stored(self) -> dict[str, tuple[int, str] | None]:
        clip_ids = sorted({event.clip_id for event in self.log})
        found: dict[str, tuple[int, str] | None] = {}
        with self._store.read(clip_ids) as embeddings:
            for clip_id, embedding in zip(clip_ids, embeddings, strict=True):
                found[clip_id] = None
                if embedding is not None:
                    version = (embedding.uploaded_at - FIRST) // dt.timedelta(seconds=1)
                    found[clip_id] = version, [*LOOKS][int(np.argmax(embedding.matrix[0]))]
        return found

    def embedded(self) -> list[Record]:
        return read(self.settings, EMBED.output)

    def require_the_end_that_the_log_says(self) -> None:
        """Wait for each upload's announcement; then there must be one of each, and the store as the log says."""
        wait_until(lambda: len(self.embedded()) >= self.uploads, seconds=90)
        announced: Counter[tuple[str, int]] = Counter()
        for record in self.embedded():
            event = JSON.decode(ClipEmbedded, record.value, record.key)
            announced[event.clip_id, (event.uploaded_at - FIRST) // dt.timedelta(seconds=1)] += 1
        assert announced == Counter((e.clip_id, e.version) for e in self.log if isinstance(e, Upload))
        assert self.stored() == what_the_log_says(self.log)


@pytest.fixture
def stage(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Stage]:
    settings = load(
        {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "store": f"lmdb:{tmp_path / 'store'}",
            "drain_timeout": 2,
            "kafka": {
                "max.poll.interval.ms": str(EVICTED_AFTER_MS),
                "session.timeout.ms": str(EVICTED_AFTER_MS),
                "heartbeat.interval.ms": "500",
            },
        }
    )
    apply(settings, load_specs())
    made = Stage(settings, tmp_path)
    yield made
    made.close()


def test_a_zombie_that_works_on_in_a_queue_of_the_next_owners_clips_changes_nothing(stage: Stage) -> None:
    zombie = stage.start("zombie")
    stage.feed(*(Upload(clip_id, 1, "red") for clip_id in ("again", "gone", "tie", "older", "newer")))
    wait_until(lambda: stage.stored() == what_the_log_says(stage.log))
    wait_until(lambda: zombie.committed_uploads == 5)
    before = len(zombie.works)

    zombie.gate.shut()
    events: list[Event] = [
        *(Delete("again"), Upload("again", 2, "blue")),
        *(Upload("gone", 3, "green"), Delete("gone")),
        *(Upload("tie", 4, "green"), Upload("tie", 4, "blue")),  # of one version the later one counts
        *(Upload("older", 9, "blue"), Upload("older", 8, "green"), Delete("older"), Upload("older", 8, "red")),
        *(Upload("newer", 5, "green"), Delete("newer"), Delete("newer"), Upload("newer", 6, "blue")),
    ]
    zombie.freeze_after(len(events))
    stage.feed(*events)
    wait_until(lambda: len(zombie.works) == before + len(events))
    assert zombie.gate.waiting.wait(30)

    owner = stage.start("owner")
    wait_until(lambda: len(owner.works) == len(events) and owner.has_finished_its_work)
    wait_until(lambda: owner.committed_uploads == sum(isinstance(event, Upload) for event in events))
    assert stage.stored() == what_the_log_says(stage.log)

    # The zombie's loop still sleeps, so nothing has told its pipeline that the partitions are another's.
    late = zombie.works[before:]
    assert not any(work.revoked for work in late)
    zombie.gate.open()
    wait_until(lambda: zombie.has_finished_its_work)
    assert stage.stored() == what_the_log_says(stage.log)
    written = {position for call in zombie.gate.calls for position in call}
    assert written >= {position_of(work.record) for work in late}

    zombie.thaw()
    wait_until(lambda: zombie.count("streamer_rebalances_total", kind="lost") > 0)
    stage.feed(Upload("again", 7, "green"), Delete("tie"), Upload("tie", 5, "red"))
    stage.require_the_end_that_the_log_says()


def test_a_rebalance_while_a_write_is_on_its_way_leaves_the_rest_to_the_next_owner(stage: Stage) -> None:
    first = stage.start("first")
    clips = [f"c{number}" for number in range(36)]
    first.gate.shut()
    stage.feed(*(Upload(clip_id, 1, "red") for clip_id in clips))
    assert first.gate.waiting.wait(30)
    stage.feed(
        *(Delete(clip_id) for clip_id in clips),
        *(Upload(clip_id, 2, "blue") for clip_id in clips),
        *(Upload(clip_id, 1, "green") for clip_id in clips),
    )
    wait_until(lambda: len(first.works) == len(stage.log))

    second = stage.start("second")
    # Both go on with what is theirs; the first one's only write is still on its way.
    wait_until(lambda: bool(second.works))
    foreign_works = [work for work in first.works if work.revoked]
    wait_until(lambda: len(second.works) == len(foreign_works) and second.has_finished_its_work)
    foreign = {position_of(work.record) for work in foreign_works}
    assert len(first.gate.calls) == 1
    on_its_way = set(first.gate.calls[0])

    first.gate.open()
    stage.require_the_end_that_the_log_says()
    wait_until(lambda: first.has_finished_its_work)
    assert not foreign & {position for call in first.gate.calls[1:] for position in call}
    wait_until(lambda: second.committed_uploads == 3 * len({work.record.key for work in foreign_works}))
    # Where the write that was on its way held a clip of the next owner's, it came too late and was refused.
    assert first.gate.outcomes[: len(on_its_way)].count(PutOutcome.SUPERSEDED) == len(on_its_way & foreign)


@pytest.mark.parametrize("seed", range(3))
def test_events_in_any_order_and_restarts_before_the_commit_leave_what_the_log_says(
    stage: Stage, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    clips = [f"c{number}" for number in range(8)]
    log: list[Event] = [Upload(clip_id, rng.randrange(3), "red") for clip_id in clips]
    for _ in range(60):
        clip_id = rng.choice(clips)
        upload = Upload(clip_id, rng.randrange(5), rng.choice([*LOOKS]))
        log.append(Delete(clip_id) if rng.random() < 0.3 else upload)

    committing = Transactions.run

    def die_before_the_commit(_self: Transactions, _batch: object, _metadata: object) -> None:
        raise AbortedError("the process dies before the commit")

    parts = [log[:30], log[30:50], log[50:]]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        monkeypatch.setattr(Transactions, "run", committing if is_last else die_before_the_commit)
        stage.feed(*part)
        instance = stage.start("instance")
        wait_until(lambda: len(instance.works) == len(stage.log) and instance.has_finished_its_work)  # noqa: B023
        assert stage.stored() == what_the_log_says(stage.log)
        if not is_last:
            stage.end(instance)
            assert stage.embedded() == []
    stage.require_the_end_that_the_log_says()
