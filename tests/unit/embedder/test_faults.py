"""Faults of sources, decoders, the machine and the store: what is tried again, waited for or given up."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from streamer.codec import JSON
from streamer.embedder import _WAITING_OF_ONE_ORIGIN, Upsert
from streamer.events import ClipUploaded, Reason
from streamer.machine import Lack, MachineError
from streamer.store import Position, StoreUnavailableError
from streamer.video import ClipError, Retry
from streamer.video.fetching.fetcher import Fetcher
from tests.support.embedding import T0, Harness, Recording, TwoVectorEncoder, dominant, reason
from tests.support.in_process import InProcessDecoder
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamer.codec import E
    from streamer.events import Event
    from streamer.kafka import InFlightRecord
    from streamer.store import Store


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

    def __init__(self, prepare: Callable[[Any], Any], *errors: Exception) -> None:
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


class ShortOfMemory(TwoVectorEncoder):
    """Has no memory for a batch the first two times."""

    attempts = 0

    def encode_images(self, prepared: Sequence[Any]) -> Any:
        self.attempts += 1
        if self.attempts <= 2:
            raise MemoryError
        return super().encode_images(prepared)


def test_memory_that_the_encoder_lacks_is_waited_for(tmp_path: Path, store: Store, red: Path) -> None:
    encoder = ShortOfMemory()
    harness = Harness(tmp_path, store, encoder)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"
    assert encoder.attempts == 3
    assert harness.metrics.registry.get_sample_value("streamer_machine_faults_total", {"lack": "memory"}) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "no descriptor")], ids=repr
)
def test_what_is_lacking_for_the_frames_or_the_store_is_waited_for(
    tmp_path: Path, store: Store, red: Path, error: Exception
) -> None:
    harness = Harness(tmp_path, Refusing(store, [error] * 2))
    decoder = harness.embedder._decoder = Failing(harness.encoder.prepare, error, error)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"
    assert decoder._errors == []
    (outputs,) = harness.run(harness.work("c1", None))
    assert list(outputs) == []


class ShortCodec:
    """JSON, for which there is no memory the first two times that an upload is read, or an announcement written."""

    content_type = JSON.content_type

    def __init__(self, step: str) -> None:
        self._left = {step: 2}

    def _spend(self, step: str) -> None:
        if self._left.get(step):
            self._left[step] -= 1
            raise MemoryError

    def decode(self, model: type[E], value: bytes | None, key: bytes | None = None) -> E:
        self._spend("decode")
        return JSON.decode(model, value, key)

    def encode(self, event: Event) -> bytes:
        self._spend("encode")
        return JSON.encode(event)


@pytest.mark.parametrize("step", ["decode", "encode"])
def test_memory_that_is_lacking_for_an_event_is_waited_for(tmp_path: Path, store: Store, red: Path, step: str) -> None:
    harness = Harness(tmp_path, store)
    harness.embedder._codec = ShortCodec(step)
    outputs = harness.run(*(harness.upload(f"c{number}", red) for number in range(3)))
    assert [output.topic for (output,) in outputs] == ["clips.embedded"] * 3
    assert harness.metrics.registry.get_sample_value("streamer_machine_faults_total", {"lack": "memory"}) == 2


def test_memory_that_is_lacking_for_the_vectors_of_a_clip_is_waited_for(
    tmp_path: Path, store: Store, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = 2

    def upsert(*arguments: Any) -> Upsert:
        nonlocal short
        if short:
            short -= 1
            raise MemoryError
        return Upsert(*arguments)

    harness = Harness(tmp_path, store)
    monkeypatch.setattr("streamer.embedder.Upsert", upsert)
    outputs = harness.run(*(harness.upload(f"c{number}", red) for number in range(3)))
    assert [output.topic for (output,) in outputs] == ["clips.embedded"] * 3
    assert short == 0


def test_a_thread_that_the_store_lacks_is_waited_for(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, Refusing(store, [RuntimeError("can't start new thread")] * 2))
    outputs = harness.run(*(harness.upload(f"c{number}", red) for number in range(3)))
    assert [output.topic for (output,) in outputs] == ["clips.embedded"] * 3
    assert put_off(harness) == 2


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


def test_a_source_that_answers_none_of_its_clips_holds_up_no_other_source(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    answer = threading.Event()

    class Slow(Fetcher):
        def fetch(self, uri: str) -> Any:
            if uri.startswith("https://slow.example"):
                assert answer.wait(30)
                raise ClipError(Reason.NOT_FOUND, "http 404")
            return super().fetch(uri)

    harness.embedder._fetcher = Slow([tmp_path.as_uri(), "https://slow.example/"], max_bytes=1 << 24, timeout=5)
    slow = [upload(harness, f"s{n}", "https://slow.example/clip.mp4") for n in range(60)]
    harness.embedder.submit(slow)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"
    answer.set()
    for _ in slow:
        assert harness.done.acquire(timeout=20)
    assert {reason(work.outputs or ()) for work in slow} == {"not_found"}


def test_one_slow_source_is_one_whatever_the_spelling_of_its_uris(tmp_path: Path, store: Store, red: Path) -> None:
    """The port with zeros before it, capitals, an empty port: more spellings than there are threads to take."""
    spellings = [
        f"{scheme}://{host}{port}"
        for scheme in ("https", "HTTPS", "hTTps")
        for host in ("slow.example", "SLOW.example", "slow.EXAMPLE")
        for port in ("", ":", ":443", ":0443", ":00443", ":000443")
    ]
    harness = Harness(tmp_path, store)
    answer = threading.Event()
    held: list[str] = []

    class Slow(Fetcher):
        def fetch(self, uri: str) -> Any:
            if not uri.startswith("file:"):
                held.append(uri)
                assert answer.wait(30)
                raise ClipError(Reason.NOT_FOUND, "http 404")
            return super().fetch(uri)

    harness.embedder._fetcher = Slow([tmp_path.as_uri(), "https://slow.example/"], max_bytes=1 << 24, timeout=5)
    slow = [upload(harness, f"s{n}", f"{spelling}/{n}.mp4") for n, spelling in enumerate(spellings)]
    harness.embedder.submit(slow)
    (outputs,) = harness.run(harness.upload("c1", red))
    assert outputs[0].topic == "clips.embedded"
    assert len(held) == harness.embedder._settings.decode_workers + _WAITING_OF_ONE_ORIGIN
    answer.set()
    for _ in slow:
        assert harness.done.acquire(timeout=20)
    assert {reason(work.outputs or ()) for work in slow} == {"not_found"}


@pytest.mark.parametrize(
    "uri", ["https://slow.example/other/a.mp4", "https://slow.example:444/clips/a.mp4", "https://u@slow.example/", "x:"]
)
def test_a_refused_uri_waits_for_no_turn(tmp_path: Path, store: Store, uri: str) -> None:
    harness = Harness(tmp_path, store)
    answer = threading.Event()

    class Slow(Fetcher):
        def fetch(self, _uri: str) -> Any:
            assert answer.wait(30)
            raise ClipError(Reason.NOT_FOUND, "http 404")

    harness.embedder._fetcher = Slow(["https://slow.example/clips/"], max_bytes=1 << 24, timeout=5)
    slow = [upload(harness, f"s{n}", f"https://slow.example/clips/{n}.mp4") for n in range(60)]
    harness.embedder.submit(slow)
    (outputs,) = harness.run(upload(harness, "refused", uri))
    assert reason(outputs) == "uri_refused"
    answer.set()
    for _ in slow:
        assert harness.done.acquire(timeout=20)


def upload(harness: Harness, clip_id: str, uri: str) -> InFlightRecord:
    return harness.work(clip_id, JSON.encode(ClipUploaded(clip_id=clip_id, uri=uri, uploaded_at=T0)))


class Refusing:
    """A real store whose first writes raise these errors."""

    def __init__(self, store: Store, errors: Sequence[Exception]) -> None:
        self._store = store
        self._puts, self._deletes = list(errors), list(errors)

    def put(self, clips: Any) -> Any:
        if self._puts:
            raise self._puts.pop()
        return self._store.put(clips)

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> Any:
        if self._deletes:
            raise self._deletes.pop()
        return self._store.delete(clip_id, deleted_at, position)


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
    recovering = Recovering(store)
    harness = Harness(tmp_path, recovering)
    work = harness.upload("c1", red)
    harness.embedder.submit([work])
    wait_until(lambda: "store: disk full" in harness.health.readiness_problems())
    assert work.outputs is None
    recovering.writable.set()
    assert harness.done.acquire(timeout=20)
    assert work.outputs is not None
    assert work.outputs[0].topic == "clips.embedded"
    assert "store: disk full" not in harness.health.readiness_problems()
    assert dominant(store, "c1") == 0


def test_deletes_pass_a_store_that_is_full_and_show_nothing_about_uploads(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    harness.run(harness.upload("old", red))
    recovering = Recovering(store)
    harness = Harness(tmp_path, Full(store, recovering))
    uploads = [harness.upload(f"c{number}", red) for number in range(3)]
    harness.embedder.submit(uploads)
    wait_until(lambda: "store: disk full" in harness.health.readiness_problems())
    [outputs] = harness.run(harness.work("old", None))
    assert not outputs
    assert list(store.clip_ids()) == []
    assert "store: disk full" in harness.health.readiness_problems()
    assert [upload.outputs for upload in uploads] == [None] * 3
    recovering.writable.set()
    for _ in uploads:
        assert harness.done.acquire(timeout=20)
    assert harness.health.readiness_problems() == ["start: starting"]


class Full:
    """A store that takes deletes at any time, and uploads as another one does."""

    def __init__(self, store: Store, recovering: Recovering) -> None:
        self.delete = store.delete
        self.put = recovering.put


def test_revoked_records_are_not_written_after_the_store_recovers_and_block_nothing(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    recovering = Recovering(store)
    harness = Harness(tmp_path, recovering)
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
    recovering.writable.set()
    harness.run(harness.upload("c3", red))
    assert harness.health.readiness_problems() == ["start: starting"]
    assert store.stats().models == {"colour": 1}
    assert store.stats().tombstones == 0


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
    uploads = len(works) - 1  # a delete has a stage of its own
    with capture_logs() as told:  # and no tracebacks drawn, which takes seconds
        harness.embedder.submit(works)
        wait_until(lambda: len(harness.embedder._storing._queue._entries) == uploads)
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
