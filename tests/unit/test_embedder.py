"""The embedder's pipeline on real files and a real store, with an encoder that sees a frame's mean colour."""

from __future__ import annotations

import datetime as dt
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from streamer import embedder, faults
from streamer.codec import JSON
from streamer.embedder import Embedder
from streamer.events import ClipEmbedded, ClipUploaded, Reason
from streamer.health import Health
from streamer.kafka import InFlightRecord, Record
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.store import Position, StoreUnavailableError, open_store
from streamer.synthetic.write import write_h264
from streamer.video import ClipError, Retry
from streamer.video.errors import Lack, MachineError
from streamer.video.fetching.fetcher import Fetcher
from tests.support.encoders import FakeEncoder
from tests.support.in_process import InProcessDecoder
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Output
    from streamer.store import Clip, Store

DIM = 3
T0 = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


class MeanColour(FakeEncoder):
    """Two vectors a frame: its mean colour, and the same with the channels reversed. Refuses pure black."""

    vectors_per_frame = 2

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare_square(self, frame: Any) -> Any:
        return frame

    def encode_images(self, prepared: Sequence[Any]) -> Any:
        self.batches.append(len(prepared))
        colours = np.stack([frame.reshape(-1, DIM).mean(axis=0) for frame in prepared]).astype(np.float32)
        if (colours.max(axis=1) < 20).any():
            raise RuntimeError("too dark")
        unit = colours / np.linalg.norm(colours, axis=1, keepdims=True)
        return np.stack([unit, unit[:, ::-1]], axis=1)


def clip(path: Path, colour: tuple[int, int, int], *, frames: int = 20) -> Path:
    write_h264(path, (np.full((64, 64, 3), colour, np.uint8) for _ in range(frames)), fps=10)
    return path


class Harness:
    """Runs records through an embedder and waits until each is done."""

    def __init__(self, folder: Path, store: Any, encoder: MeanColour | None = None, **settings: Any) -> None:
        made = load({"fetch_retry_timeout": 0, **settings})
        self.encoder = encoder or MeanColour()
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.done = threading.Semaphore(0)
        self.offset = 0
        self.embedder = Embedder(
            made,
            codec=JSON,
            encoder=self.encoder,
            store=store,
            fetcher=Fetcher([folder.as_uri()], max_bytes=1 << 24, timeout=5),
            decoder=InProcessDecoder(self.encoder.prepare),
            metrics=self.metrics,
            health=self.health,
        )

    def work(self, key: str | None, value: bytes | None, at: dt.datetime = T0) -> InFlightRecord:
        self.offset += 1
        encoded = key.encode() if key is not None else None
        record = Record("clips.uploaded", 0, self.offset, encoded, value, (("ce_id", b"9"),), at, log="uploads-0")
        return InFlightRecord(record, self.done.release)

    def upload(self, clip_id: str, path: Path, *, seconds: float = 0) -> InFlightRecord:
        at = T0 + dt.timedelta(seconds=seconds)
        return self.work(clip_id, JSON.encode(ClipUploaded(clip_id=clip_id, uri=path.as_uri(), uploaded_at=at)))

    def run(self, *works: InFlightRecord) -> list[Sequence[Output]]:
        self.embedder.submit(works)
        for _ in works:
            assert self.done.acquire(timeout=20)
        return [work.outputs or () for work in works]


def reason(outputs: Sequence[Output]) -> str:
    (output,) = outputs
    assert output.topic == "clips.uploaded.dlq"
    return (dict(output.headers)["dlq.reason"] or b"").decode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"lmdb:{tmp_path / 'store'}", model_id="colour", dim=DIM, precision="float32")
    yield opened
    opened.close()


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return clip(tmp_path / "red.mp4", (200, 30, 30))


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    return clip(tmp_path / "blue.mp4", (30, 30, 200), frames=10)


def dominant(store: Store, clip_id: str) -> int | None:
    """Return the strongest channel of a stored clip's first vector, None where it is not stored."""
    with store.read([clip_id]) as (embedding,):
        return None if embedding is None else int(np.argmax(embedding.matrix[0]))


def test_an_upload_is_stored_with_each_vectors_time_and_announced(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    ((output,),) = harness.run(harness.upload("c1", red))
    event = JSON.decode(ClipEmbedded, output.value, output.key)
    assert (event.clip_id, event.model_id, event.frames, event.duration_ms) == ("c1", "colour", 4, 2000)
    assert event.uploaded_at == T0
    headers = dict(output.headers)
    assert headers["content-type"] == b"application/json"
    assert (headers["ce_id"], headers["ce_subject"]) == (b"embed-uploads-0-1", b"c1")
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.times_ms.tolist() == [0, 0, 500, 500, 1000, 1000, 1500, 1500]
        assert embedding.matrix.shape == (8, DIM)


def test_duplicates_are_encoded_once_and_stored_with_all_their_times(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    harness.embedder._decoder = InProcessDecoder(harness.encoder.prepare_square, duplicate_threshold=2)
    ((output,),) = harness.run(harness.upload("c1", red))
    assert JSON.decode(ClipEmbedded, output.value, output.key).frames == 4
    assert harness.encoder.batches == [1]
    value = harness.metrics.registry.get_sample_value
    assert (value("streamer_frames_encoded_total"), value("streamer_frames_duplicate_total")) == (1, 3)
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.times_ms.tolist() == [0, 0, 500, 500, 1000, 1000, 1500, 1500]
        assert (embedding.matrix[:2] != embedding.matrix[1]).any()
        assert all((embedding.matrix[2 * n : 2 * n + 2] == embedding.matrix[:2]).all() for n in range(4))


def test_frames_of_clips_that_wait_share_batches(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store, image_batch=6)
    harness.run(*(harness.upload(f"c{number}", red) for number in range(12)))
    assert sum(harness.encoder.batches) == 48
    assert max(harness.encoder.batches) <= 6


def test_events_of_one_clip_take_turns_in_the_order_of_the_log(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    harness = Harness(tmp_path, store)
    harness.run(
        harness.upload("c1", red),
        harness.work("c1", None),
        harness.upload("c1", blue, seconds=1),
        harness.upload("c2", red),
        harness.upload("c2", blue, seconds=1),
        harness.work("c2", None),
        harness.upload("c3", blue, seconds=2),
        harness.upload("c3", red, seconds=1),
    )
    assert dominant(store, "c1") == 2
    assert dominant(store, "c2") is None
    assert dominant(store, "c3") == 2


def test_a_redelivery_does_not_undo_a_delete_and_is_announced_all_the_same(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    harness.run(harness.upload("c1", red))
    assert harness.run(harness.work("c1", None)) == [()]
    ((output,),) = harness.run(harness.upload("c1", red))
    assert output.topic == "clips.embedded"
    assert dominant(store, "c1") is None
    assert harness.metrics.registry.get_sample_value("streamer_uploads_superseded_total") == 1


def test_what_cannot_be_embedded_is_dead_lettered_with_its_reason(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video " * 100)
    outside = JSON.encode(ClipUploaded(clip_id="o", uri="file:///etc/hostname", uploaded_at=T0))
    outputs = harness.run(
        harness.work("c1", b"{"),
        harness.work(None, None),
        harness.work("", None),
        harness.upload("c2", tmp_path / "none.mp4"),
        harness.upload("c3", garbage),
        harness.work("o", outside),
        harness.work("other", JSON.encode(ClipUploaded(clip_id="c4", uri=red.as_uri(), uploaded_at=T0))),
        harness.upload("good", red),
    )
    assert [reason(each) for each in outputs[:-1]] == [
        "not_json",
        "empty",
        "limit_exceeded",
        "not_found",
        "decode_failed",
        "uri_refused",
        "key_mismatch",
    ]
    assert outputs[-1][0].topic == "clips.embedded"


def test_a_clip_that_the_model_refuses_costs_the_others_of_its_batch_nothing(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    black = clip(tmp_path / "black.mp4", (0, 0, 0))
    outputs = harness.run(
        *(harness.upload(f"c{number}", red) for number in range(4)),
        harness.upload("black", black),
        *(harness.upload(f"d{number}", red) for number in range(4)),
    )
    assert reason(outputs[4]) == "encode_failed"
    assert all(each[0].topic == "clips.embedded" for position, each in enumerate(outputs) if position != 4)


def test_a_transient_fault_is_retried_for_its_time_and_counted(tmp_path: Path, store: Store) -> None:
    harness = Harness(tmp_path, store, fetch_retry_timeout=4)

    class Flaky(Fetcher):
        def fetch(self, uri: str) -> Any:
            raise ClipError(Reason.FETCH_FAILED, f"503 for {uri}", Retry.FOR_A_WHILE)

    harness.embedder._fetcher = Flaky([tmp_path.as_uri()], max_bytes=1, timeout=1)
    (outputs,) = harness.run(harness.upload("c1", tmp_path / "c1.mp4"))
    assert reason(outputs) == "fetch_failed"
    assert int(dict(outputs[0].headers)["dlq.attempts"] or 0) >= 2
    assert harness.metrics.registry.get_sample_value("streamer_retries_total", {"stage": "load"})


class Failing(InProcessDecoder):
    """Fails with the given errors, one an attempt, before it decodes."""

    def __init__(self, prepare: Callable[[Any], Any], *errors: ClipError) -> None:
        super().__init__(prepare)
        self._errors = list(errors)

    def sampled(self, path: Path) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return super().sampled(path)


CRASH = ClipError(Reason.DECODER_CRASHED, "SIGSEGV", Retry.ONCE)


def test_a_decoder_that_crashes_once_costs_the_clip_nothing(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    harness.embedder._decoder = Failing(harness.encoder.prepare, CRASH)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"


def test_a_clip_at_which_the_decoder_crashes_twice_is_dead_lettered(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store, fetch_retry_timeout=60)
    harness.embedder._decoder = Failing(harness.encoder.prepare, CRASH, CRASH, CRASH)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert reason(outputs) == "decoder_crashed"
    assert dict(outputs[0].headers)["dlq.attempts"] == b"2"


class Lacking(InProcessDecoder):
    """Has no process for a clip until there is one."""

    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        super().__init__(prepare)
        self.enough = threading.Event()

    def sampled(self, path: Path) -> Any:
        if not self.enough.is_set():
            raise MachineError(Lack.PROCESSES, "the decoders' template cannot fork")
        return super().sampled(path)


def test_what_the_machine_lacks_is_waited_for_and_no_upload_is_given_up(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store, fetch_retry_timeout=0)
    harness.health.ready("start")
    harness.embedder._decoder = lacking = Lacking(harness.encoder.prepare)
    works = [harness.upload(f"c{number}", red) for number in range(3)]
    harness.embedder.submit(works)
    wait_until(lambda: put_off(harness) > 5)
    assert harness.health.readiness_problems() == ["machine: processes: the decoders' template cannot fork"]
    assert [work.outputs for work in works] == [None] * 3
    lacking.enough.set()
    for _ in works:
        assert harness.done.acquire(timeout=20)
    assert [outputs[0].topic for outputs in (work.outputs or () for work in works)] == ["clips.embedded"] * 3
    wait_until(lambda: harness.health.readiness_problems() == [])


def put_off(harness: Harness) -> float:
    return harness.metrics.registry.get_sample_value("streamer_machine_faults_total", {"lack": "processes"}) or 0.0


def test_an_upload_that_has_gone_to_another_instance_is_not_waited_for(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    harness.embedder._decoder = Lacking(harness.encoder.prepare)
    work = harness.upload("c1", red)
    harness.embedder.submit([work])
    wait_until(lambda: put_off(harness) > 0)
    work.revoked = True
    assert harness.done.acquire(timeout=20)
    assert work.outputs == []


def test_a_clip_that_decodes_in_part_says_so_and_is_counted(tmp_path: Path, store: Store) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    noise = np.random.default_rng(0)
    write_h264(whole, (noise.integers(40, 256, (64, 64, 3), np.uint8) for _ in range(40)), fps=10)
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    cut.write_bytes(damaged)
    harness = Harness(tmp_path, store)
    outputs = harness.run(harness.upload("whole", whole), harness.upload("cut", cut))
    events = [JSON.decode(ClipEmbedded, each[0].value, each[0].key) for each in outputs]
    assert [event.partial for event in events] == [False, True]
    assert harness.metrics.registry.get_sample_value("streamer_clips_partial_total") == 1


def test_a_source_that_answers_none_of_its_clips_holds_up_no_other_source(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    answer = threading.Event()

    class Slow(Fetcher):
        def fetch(self, uri: str) -> Any:
            if uri.startswith("https://slow.example"):
                assert answer.wait(30)
            return super().fetch(uri)

    harness.embedder._fetcher = Slow([tmp_path.as_uri()], max_bytes=1 << 24, timeout=5)
    event = ClipUploaded(clip_id="s", uri="https://slow.example/clip.mp4", uploaded_at=T0)
    slow = [harness.work(f"s{n}", JSON.encode(msgspec.structs.replace(event, clip_id=f"s{n}"))) for n in range(60)]
    harness.embedder.submit(slow)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"
    answer.set()
    for _ in slow:
        assert harness.done.acquire(timeout=20)
    assert {reason(work.outputs or ()) for work in slow} == {"uri_refused"}


class Recovering:
    """A real store that cannot be written until it is told so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.writable = threading.Event()

    def _guarded(self, write: Callable[..., Any], *arguments: Any) -> Any:
        if not self.writable.is_set():
            raise StoreUnavailableError("disk full")
        return write(*arguments)

    def put(self, clips: Any) -> Any:
        return self._guarded(self._store.put, clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> Any:
        return self._guarded(self._store.delete, clip_id, deleted_at, position)


def test_an_unreachable_store_is_waited_for_and_no_upload_is_dead_lettered(
    tmp_path: Path, store: Store, red: Path
) -> None:
    away = Recovering(store)
    harness = Harness(tmp_path, away)
    work = harness.upload("c1", red)
    harness.embedder.submit([work])
    wait_until(lambda: "store: disk full" in harness.health.readiness_problems())
    assert work.outputs is None
    away.writable.set()
    assert harness.done.acquire(timeout=20)
    assert work.outputs is not None
    assert work.outputs[0].topic == "clips.embedded"
    assert "store: disk full" not in harness.health.readiness_problems()
    assert dominant(store, "c1") == 0


def test_what_turns_stale_while_the_store_is_unreachable_is_not_written_and_blocks_nothing(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    away = Recovering(store)
    harness = Harness(tmp_path, away)
    works = [harness.upload("c1", red), harness.work("c2", None), harness.upload("c1", blue, seconds=1)]
    harness.embedder.submit(works)
    wait_until(lambda: "store: disk full" in harness.health.readiness_problems())
    for work in works:
        work.revoked = True
    for _ in works:
        assert harness.done.acquire(timeout=20)
    assert [work.outputs for work in works] == [[], [], []]
    # Nothing was written, so nothing is known of the store.
    assert "store: disk full" in harness.health.readiness_problems()
    away.writable.set()
    harness.run(harness.upload("c3", red))
    assert harness.health.readiness_problems() == ["start: starting"]
    assert store.stats().models == {"colour": 1}
    assert store.stats().tombstones == 0


class Recording:
    """A real store that notes what is asked of it, and fails on certain clips for no reason it knows."""

    def __init__(self, store: Store, *, failing: frozenset[str] = frozenset()) -> None:
        self._store = store
        self._failing = failing
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.puts: list[list[tuple[str, Position]]] = []
        self.deletes: list[tuple[str, Position]] = []

    def put(self, clips: Sequence[Clip]) -> Any:
        self.entered.set()
        assert self.go.wait(20)
        self.puts.append([(each.clip_id, each.position) for each in clips])
        if any(each.clip_id in self._failing for each in clips):
            raise ValueError("unforeseen")
        return self._store.put(clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> Any:
        self.deletes.append((clip_id, position))
        if clip_id in self._failing:
            raise ValueError("unforeseen")
        return self._store.delete(clip_id, deleted_at, position)


def test_writes_carry_the_place_of_their_records_in_the_log(tmp_path: Path, store: Store, red: Path) -> None:
    recording = Recording(store)
    harness = Harness(tmp_path, recording)
    harness.run(harness.upload("c1", red))
    harness.run(harness.work("c1", None))
    assert recording.puts == [[("c1", Position.of("uploads-0", 1))]]
    assert recording.deletes == [("c1", Position.of("uploads-0", 2))]


def test_a_replay_of_the_log_leaves_the_store_as_it_is_and_announces_each_upload_again(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    harness = Harness(tmp_path, store)
    log = [harness.upload("c1", red), harness.work("c1", None), harness.upload("c1", blue, seconds=1)]
    first = harness.run(*log)
    again = harness.run(*(InFlightRecord(work.record, harness.done.release) for work in log))
    assert [len(outputs) for outputs in first] == [len(outputs) for outputs in again] == [1, 0, 1]
    assert dominant(store, "c1") == 2


def test_an_unexpected_fault_of_the_store_costs_only_the_records_that_it_concerns(
    tmp_path: Path, store: Store, red: Path
) -> None:
    recording = Recording(store, failing=frozenset({"bad", "undeletable"}))
    recording.go.clear()
    harness = Harness(tmp_path, recording)
    first = harness.upload("first", red)
    harness.embedder.submit([first])
    assert recording.entered.wait(20)  # what comes now waits for the store together
    keys = ["c0", "c1", "bad", "c2", "undeletable", "c3"]
    works = [harness.work(key, None) if key == "undeletable" else harness.upload(key, red) for key in keys]
    harness.embedder.submit(works)
    wait_until(lambda: len(harness.embedder._storing._queue._entries) == len(works))
    with capture_logs() as told:  # and no tracebacks drawn, which takes seconds
        recording.go.set()
        for _ in range(len(works) + 1):
            assert harness.done.acquire(timeout=20)
    assert [line["event"] for line in told].count("embedding failed") == 2
    assert max(len(put) for put in recording.puts) > 1
    outputs = {key: work.outputs or () for key, work in zip(keys, works, strict=True)}
    assert reason(outputs.pop("bad")) == "internal"
    assert reason(outputs.pop("undeletable")) == "internal"
    assert [each[0].topic for each in outputs.values()] == ["clips.embedded"] * 4
    assert not harness.done.acquire(timeout=0.2)  # each was done once
    assert sorted(store.clip_ids()) == ["c0", "c1", "c2", "c3", "first"]


def test_the_fault_point_is_reached_right_after_each_durable_write(
    tmp_path: Path, store: Store, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[faults.FaultPoint, int | None]] = []
    works: list[InFlightRecord] = []

    def reach(point: faults.FaultPoint) -> None:
        if point is faults.FaultPoint.STORED:
            assert works[-1].outputs is None
            seen.append((point, dominant(store, "c1")))

    monkeypatch.setattr(faults, "reach", reach)
    harness = Harness(tmp_path, store)
    for work in (harness.upload("c1", red), harness.work("c1", None)):
        works.append(work)
        harness.run(work)
    assert seen == [(faults.FaultPoint.STORED, 0), (faults.FaultPoint.STORED, None)]


class Gated(MeanColour):
    """Prepares frames of a mebibyte, and encodes none before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self._made: list[weakref.ref[Any]] = []

    @property
    def alive(self) -> int:
        return sum(made() is not None for made in self._made)

    def prepare(self, frame: Any) -> Any:
        made = np.full((1 << 18,), frame.reshape(-1, 3).mean(axis=0)[0], np.float32)
        self._made.append(weakref.ref(made))
        return made

    def encode_images(self, prepared: Sequence[Any]) -> Any:
        assert self.go.wait(60)
        return np.ones((len(prepared), 2, DIM), np.float32) / np.float32(np.sqrt(DIM))


def test_frames_that_wait_for_the_encoder_are_bounded_in_bytes_and_the_loop_is_never_held_up(
    tmp_path: Path, store: Store, red: Path
) -> None:
    gated = Gated()
    harness = Harness(tmp_path, store, gated, queue_bytes=6 << 20, image_batch=4)
    works = [harness.upload(f"c{number}", red) for number in range(30)]  # of 4 frames each
    harness.embedder.submit(works)
    wait_until(lambda: gated.alive >= 16)
    time.sleep(1)
    # A clip in the encoder, two in the queue, and one with each decoder.
    assert gated.alive <= 4 * 5
    began = time.monotonic()
    deletes = [harness.work(f"d{number}", None) for number in range(300)]
    assert len(harness.run(*deletes)) == 300
    assert time.monotonic() - began < 20
    gated.go.set()
    for _ in works:
        assert harness.done.acquire(timeout=20)
    wait_until(lambda: gated.alive == 0)


def test_vectors_that_wait_for_the_store_hold_back_the_encoder_and_no_frames(
    tmp_path: Path, store: Store, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(store)
    recording.go.clear()
    monkeypatch.setattr(embedder, "_bytes_to_store", lambda _item: 1 << 20)
    gated = Gated()
    gated.go.set()
    harness = Harness(tmp_path, recording, gated, queue_bytes=3 << 20, image_batch=4)
    works = [harness.upload(f"c{number}", red) for number in range(20)]
    harness.embedder.submit(works)
    assert recording.entered.wait(20)
    queue = harness.embedder._storing._queue
    wait_until(lambda: len(queue._entries) == 3)
    time.sleep(0.5)
    assert len(queue._entries) == 3
    # The queue is full for the loop's thread, and for the store's own, which queues what follows in a clip's turn.
    deletes = [harness.work(key, None) for key in ("unknown", *(f"c{number}" for number in range(20)))]
    loop = threading.Thread(target=harness.embedder.submit, args=(deletes,), daemon=True)
    loop.start()
    loop.join(10)
    assert not loop.is_alive()
    recording.go.set()
    for _ in range(len(works) + len(deletes)):
        assert harness.done.acquire(timeout=20)
    assert list(store.clip_ids()) == []


def test_a_record_passes_each_stage_once_also_where_it_waits_for_its_source(store: Store, tmp_path: Path) -> None:
    harness = Harness(tmp_path, store, decode_workers=1)
    red = clip(tmp_path / "red.mp4", (200, 10, 10))
    works = [harness.upload(f"c{number}", red) for number in range(30)]  # 9 of one source are loaded at the same time
    outputs = harness.run(*works, harness.work("c0", None), harness.work("c1", b"{"), harness.work("\x00" * 600, None))
    assert [output.topic for each in outputs for output in each] == [
        *["clips.embedded"] * 30,
        *["clips.uploaded.dlq"] * 2,
    ]
    passed = {
        stage: harness.metrics.registry.get_sample_value("streamer_batch_size_sum", {"stage": stage})
        for stage in ("read", "load", "store")
    }
    assert passed == {"read": 33, "load": 30, "store": 31}
    with store.read(["c0", "c1"]) as found:
        assert [each is None for each in found] == [True, False]
