"""Upload -> store, told as the story of one clip.

    submit    one upload or delete; those of one clip take turns, in the order of the log
    read      check what the record asks for: an upload goes to load, a delete to store     (one thread)
    load      fetch the file; decode it, sample and prepare its frames in a process of its own
                                                                            (several clips at the same time)
    encode    the frames of all clips that wait, in batches across clips    (one thread: the model is the bottleneck)
    store     one durable write for all clips that wait, one for each delete (one thread)

Near-duplicates. Where ``duplicate_threshold`` is set, frames that a cheap difference shows to be the same as one before
them are encoded once; the record is as it would be without (:mod:`streamer.video.sampling.duplicates` says why).

Each stage runs while the others do. A clip that fails for good is dead-lettered with the reason; a transient
fault of its source is retried with backoff for ``fetch_retry_timeout`` seconds, a fault of the store for as long as it
lasts: the store is ours, and no upload is to blame for it.

The store write is not part of the Kafka transaction, so it may be repeated, and by a process that was paused it
may come late. Each carries its record's position in the log, by which :class:`~streamer.store.Store` tells a
repeated or late event from a new one. What is known to be another instance's by now is not written at all.

What bounds memory. Records, waiting for their turn, their source or the store: what the loop keeps in flight.
Frames, a clip's largest form: ``queue_bytes`` of them wait for the encoder, where the clip that fills the queue
may overrun it, so that one of any size gets through; a clip keeps its decoder's place until it is queued, so that
no more have frames beside those than the decoder has places; and the encoder has a batch, ``image_batch`` frames
and what its last clip has beyond them. Vectors: ``queue_bytes`` wait for the store, overrun likewise, while as many
are being written. The loop's thread and the store's, which start what follows in a clip's turn, queue records only
and never wait.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import structlog
import tenacity

from streamer import faults
from streamer.events import ClipEmbedded, ClipUploaded, InvalidEvent, Reason, check_id, now
from streamer.kafka import Outputs, dead_letter
from streamer.stages import Stage, Turns
from streamer.store import Clip, Position, PutOutcome, StoreUnavailableError
from streamer.topology import EMBED
from streamer.tracing import stages
from streamer.video import ClipError
from streamer.video.fetching.retries import retries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy.typing as npt

    from streamer.codec import Codec
    from streamer.encoders import Encoder
    from streamer.health import Health
    from streamer.kafka import InFlightRecord, Output, Record
    from streamer.metrics import Metrics
    from streamer.settings import EmbedSettings
    from streamer.store import Store
    from streamer.video import SampledClip
    from streamer.video.fetching.fetcher import Fetcher

log = structlog.get_logger()

MAX_RECORDS = 256
"""Most uploads in flight; each costs memory only while it is being loaded, encoded or stored."""

_WAITING = 24
"""Clips that may wait for their sources without taking a decoder's place."""
_WAITING_OF_ONE_SOURCE = 8
"""How many of those may be of one source (a host, a bucket), so that a slow one does not hold up the others."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A valid upload, on its way to its source."""

    work: InFlightRecord
    event: ClipUploaded

    @property
    def source(self) -> str:
        """The scheme and host, or bucket, of its URI."""
        try:
            parts = urlsplit(self.event.uri)
        except ValueError:  # which the fetcher refuses
            return ""
        return f"{parts.scheme}://{parts.netloc}".lower()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A clip on its way from the decoder to the encoder."""

    work: InFlightRecord
    event: ClipUploaded
    sampled: SampledClip[Any]


@dataclass(frozen=True, slots=True)
class Upsert:
    """What the store is to write: a clip that comes from the encoder; its frames are gone.

    ``times_ms`` (n,): each frame's time. ``vectors`` (n * vectors_per_frame, dim) float32. ``partial``: they are
    of what could be decoded of a damaged file.
    """

    work: InFlightRecord
    event: ClipUploaded
    times_ms: npt.NDArray[np.uint32]
    duration_ms: int
    partial: bool
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Delete:
    """What the store is to remove: a valid delete."""

    work: InFlightRecord
    clip_id: str


StoreJob = Upsert | Delete


class Decoder(Protocol):
    """What makes prepared frames of a file: :class:`~streamer.video.DecodePool`."""

    def sampled(self, path: Path) -> AbstractContextManager[SampledClip[Any]]:
        """Give a clip's frames, which keep their place among those that have frames for the length of the block."""
        ...


class Embedder:
    """The pipeline of ``streamer embed``."""

    def __init__(
        self,
        settings: EmbedSettings,
        *,
        codec: Codec,
        encoder: Encoder,
        store: Store,
        fetcher: Fetcher,
        decoder: Decoder,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._outputs = Outputs(settings, EMBED, codec.content_type)
        self._encoder = encoder
        self._store = store
        self._fetcher = fetcher
        self._decoder = decoder
        self._metrics = metrics
        self._health = health
        self._image_batch = settings.image_batch or encoder.image_batch
        self._fetching = metrics.stage.labels("fetch")
        for stage in ("load", "encode", "store"):
            metrics.retries.labels(stage)
        self._turns: Turns[InFlightRecord] = Turns(1)
        self._sources: Turns[Upload] = Turns(settings.decode_workers + _WAITING_OF_ONE_SOURCE)
        shared: dict[str, Any] = {"failed": self._failed, "metrics": metrics, "health": health}
        traced = settings.tracing != "off"
        if traced:
            shared["trace_of"] = lambda item: item.work.trace
        self._storing: Stage[StoreJob] = Stage(
            "store",
            self._store_batch,
            capacity=settings.queue_bytes,
            size=_bytes_to_store,
            batch_limit=MAX_RECORDS,
            **shared,
        )
        self._encoding: Stage[Loaded] = Stage(
            "encode",
            self._encode_batch,
            capacity=settings.queue_bytes,
            size=_bytes_of_frames,
            batch_limit=self._image_batch,
            weigh=lambda loaded: len(loaded.sampled.frames),
            **shared,
        )
        self._loading: Stage[Upload] = Stage(
            "load", self._load_batch, threads=settings.decode_workers + _WAITING, **shared
        )
        self._reading: Stage[InFlightRecord] = Stage(
            "read",
            self._read_batch,
            failed=self._failed_record,
            metrics=metrics,
            health=health,
            trace_of=(lambda work: work.trace) if traced else None,
        )

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        """Take records in flight; each one's ``done`` is called from one of the stages' threads."""
        for work in works:
            if self._turns.take(work.record.key, work):
                self._reading.put_at_once(work)

    # -- read ----------------------------------------------------------------------------------------------

    def _read_batch(self, works: list[InFlightRecord]) -> None:
        for work in works:
            try:
                job = self._read(work)
            except InvalidEvent as invalid:
                self._done(work, [dead_letter(work.record, invalid.reason, invalid.detail)])
                continue
            if isinstance(job, Delete):
                self._storing.put_at_once(job)
            elif self._sources.take(job.source, job):
                self._loading.put_at_once(job)

    def _read(self, work: InFlightRecord) -> Upload | Delete:
        """Return what a record asks for. Raises :class:`InvalidEvent`."""
        record = work.record
        if record.value is None and record.key is not None:
            return Delete(work, _clip_id_of_delete(record.key))
        return Upload(work, self._codec.decode(ClipUploaded, record.value, record.key))

    # -- load ----------------------------------------------------------------------------------------------

    def _load_batch(self, uploads: list[Upload]) -> None:
        for upload in uploads:
            try:
                self._load_upload(upload)
            finally:
                following = self._sources.end(upload.source)
                if following is not None:
                    self._loading.put_at_once(following)

    def _load_upload(self, upload: Upload) -> None:
        work = upload.work
        if work.revoked:
            self._done(work, [])
            return
        attempts = 0
        with ExitStack() as place:
            try:
                for attempt in retries(self._settings.fetch_retry_timeout, self._metrics.retries.labels("load").inc):
                    with attempt:
                        attempts += 1
                        self._health.progress()
                        sampled = self._load(upload, place)
            except ClipError as error:
                self._done(work, [dead_letter(work.record, error.reason, error.detail, attempts=attempts)])
            else:
                self._metrics.frames_decoded.inc(sampled.decoded)
                self._metrics.frames_duplicate.inc(len(sampled.times_ms) - len(sampled.frames))
                self._metrics.partial.inc(sampled.partial)
                self._encoding.put(Loaded(work, upload.event, sampled))

    def _load(self, upload: Upload, place: ExitStack) -> SampledClip[Any]:
        """Fetch, decode and sample; a clip that has frames leaves its decoder's place to ``place``."""
        trace = upload.work.trace
        with ExitStack() as source:
            began = time.time_ns()
            with self._fetching.time():
                path = source.enter_context(self._fetcher.fetch(upload.event.uri))
            stages([trace], "fetch", began)
            began = time.time_ns()
            with self._health.idle():  # a decode has its own time limit, and its place may be long in coming
                sampled = place.enter_context(self._decoder.sampled(path))
            stages([trace], "decode", began, frames=len(sampled.frames))
            return sampled

    # -- encode --------------------------------------------------------------------------------------------

    def _encode_batch(self, batch: list[Loaded]) -> None:
        try:
            vectors = self._encode([frame for loaded in batch for frame in loaded.sampled.frames])
        except Exception:
            if len(batch) == 1:
                raise
            log.exception("encoding failed, trying the clips one by one", clips=len(batch))
            self._metrics.retries.labels("encode").inc()
            for loaded in batch:
                try:
                    self._encode_batch([loaded])
                except Exception as error:  # noqa: BLE001 - told with the record that it belongs to
                    self._failed(loaded, error)
            return
        first = 0
        for loaded in batch:
            count = len(loaded.sampled.frames)
            # A copy, since a view would keep the vectors of the whole batch.
            sampled = loaded.sampled
            own = vectors[first : first + count][sampled.frame_of].reshape(-1, self._encoder.dim)
            self._storing.put(
                Upsert(loaded.work, loaded.event, sampled.times_ms, sampled.duration_ms, sampled.partial, own)
            )
            first += count

    def _encode(self, frames: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Encode prepared frames in batches: (n, vectors_per_frame, dim)."""
        size = self._image_batch
        chunks = []
        for i in range(0, len(frames), size):
            faults.reach(faults.FaultPoint.ENCODING)
            chunks.append(self._encoder.encode_images(frames[i : i + size]))
            self._health.progress()
        self._metrics.frames_encoded.inc(len(frames))
        return np.concatenate(chunks)

    # -- store ---------------------------------------------------------------------------------------------

    def _store_batch(self, batch: list[StoreJob]) -> None:
        try:
            self._store_all(batch)
        except Exception:
            if len(batch) == 1:
                raise
            log.exception("storing failed, trying what is left one by one", records=len(batch))
            self._metrics.retries.labels("store").inc()
            for item in batch:
                if item.work.outputs is not None:
                    continue
                try:
                    self._store_all([item])
                except Exception as error:  # noqa: BLE001 - told with the record that it belongs to
                    self._failed(item, error)

    def _store_all(self, batch: Sequence[StoreJob]) -> None:
        uploads = [item for item in batch if isinstance(item, Upsert)]
        if uploads:
            self._persist(self._put, uploads)
        for each in uploads:
            self._done(each.work, [] if each.work.revoked else [self._announcement(each)], uploaded=each.event)
        for delete in (item for item in batch if isinstance(item, Delete)):
            self._persist(self._remove, delete)
            self._done(delete.work, [])

    def _put(self, uploads: Sequence[Upsert]) -> None:
        current = [each for each in uploads if not each.work.revoked]
        if not current:
            return
        outcomes = self._store.put([self._clip(each) for each in current])
        faults.reach(faults.FaultPoint.STORED)
        self._health.ready("store")
        searchable_at = now()
        for each, outcome in zip(current, outcomes, strict=True):
            if outcome is PutOutcome.SUPERSEDED:
                self._metrics.superseded.inc()
            else:
                fresh_s = max(0.0, (searchable_at - each.event.uploaded_at).total_seconds())
                self._metrics.freshness.observe(fresh_s, each.work.exemplar)

    def _clip(self, upsert: Upsert) -> Clip:
        return Clip(
            clip_id=upsert.event.clip_id,
            uploaded_at=upsert.event.uploaded_at,
            position=_position(upsert.work.record),
            duration_ms=upsert.duration_ms,
            vectors=upsert.vectors,
            times_ms=np.repeat(upsert.times_ms, self._encoder.vectors_per_frame),
        )

    def _announcement(self, upsert: Upsert) -> Output:
        """Make the clips.embedded event.

        A superseded upload is announced like any other, with its own ``uploaded_at``: whether the store already
        holds a newer one depends on where a crash fell, and what goes out must depend on the log alone.
        """
        event = ClipEmbedded(
            clip_id=upsert.event.clip_id,
            model_id=self._encoder.model_id,
            frames=len(upsert.times_ms),
            duration_ms=upsert.duration_ms,
            uploaded_at=upsert.event.uploaded_at,
            embedded_at=now(),
            partial=upsert.partial,
        )
        value = self._codec.encode(event)
        return self._outputs.of(upsert.work, event.clip_id, value)

    def _remove(self, delete: Delete) -> None:
        work = delete.work
        if work.revoked:
            return
        self._store.delete(delete.clip_id, work.record.timestamp, _position(work.record))
        faults.reach(faults.FaultPoint.STORED)
        self._health.ready("store")
        self._metrics.deleted.inc()

    def _persist(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write to the store, for as long as it takes; each attempt passes over what has become stale meanwhile."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailableError),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            before_sleep=self._store_is_away,
        )
        retrying(write, *arguments)

    def _store_is_away(self, state: tenacity.RetryCallState) -> None:
        self._metrics.retries.labels("store").inc()
        self._health.progress()
        self._health.not_ready("store", str(state.outcome.exception() if state.outcome else "unavailable"))

    # -- ends ----------------------------------------------------------------------------------------------

    def _done(self, work: InFlightRecord, outputs: Sequence[Output], *, uploaded: ClipUploaded | None = None) -> None:
        work.complete(outputs, since=uploaded.uploaded_at if uploaded else None)
        following = self._turns.end(work.record.key)
        if following is not None:
            self._reading.put_at_once(following)

    def _failed(self, item: Upload | Loaded | StoreJob, error: Exception) -> None:
        reason = Reason.ENCODE_FAILED if isinstance(item, Loaded) else Reason.INTERNAL
        self._failed_record(item.work, error, reason)

    def _failed_record(self, work: InFlightRecord, error: Exception, reason: Reason = Reason.INTERNAL) -> None:
        """Dead-letter a record on which our own code or the model failed; its partition goes on."""
        if work.outputs is not None:
            return
        log.error("embedding failed", place=work.record.place, exc_info=error)
        self._done(work, [dead_letter(work.record, reason, f"{type(error).__name__}: {error}")])


def _bytes_of_frames(loaded: Loaded) -> int:
    # What an encoder prepares is arrays or tensors, which tell it alike.
    return sum(frame.nbytes for frame in loaded.sampled.frames)


def _bytes_to_store(job: StoreJob) -> int:
    return job.vectors.nbytes if isinstance(job, Upsert) else job.work.record.size


def _position(record: Record) -> Position:
    return Position.of(record.log, record.offset)


def _clip_id_of_delete(key: bytes) -> str:
    try:
        clip_id = key.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(Reason.WRONG_TYPE, f"the key of a delete is not UTF-8: {error}") from None
    check_id("key", clip_id)
    return clip_id
