"""Upload -> store: the stages that a clip passes through.

    submit    one upload or delete; those of one clip are processed one at a time, in offset order
    read      decode the event: an upload goes to load, a delete to delete    (one thread)
    load      fetch, then decode, sample and prepare frames in another process    (several clips at the same time)
    encode    the frames of all waiting clips, in batches across clips    (one thread: the model is the bottleneck)
    store     one durable write for all waiting clips                     (one thread)
    delete    one durable write for each delete                           (one thread)

Near-duplicates. If ``duplicate_threshold`` is set, a run of frames that differ by no more than that is encoded once;
the record keeps a row for every frame (:func:`streamer.video.sampling.sample.distinct` says why).

All stages run concurrently. A clip that fails permanently is dead-lettered with the reason. A transient error of its
source is retried with backoff for ``fetch_retry_timeout`` seconds. An error of the store or of this machine is retried
as long as it lasts: it is not the upload's fault. A full store takes deletes, so they have a thread of their own.

The store write is not part of the Kafka transaction, so it may be repeated, and a process that was paused may write
late. Each write carries its record's position (partition and offset), by which :class:`~streamer.store.Store`
recognizes repeated and late events. Records that are known to be revoked are not written.

Memory bounds. Records that wait for an earlier event of their clip, for their source or for the store: bounded by the
loop's in-flight limit. Frames, the largest form of a clip: at most ``queue_bytes`` wait for the encoder, plus the rest
of the clip that fills the queue, so that a clip of any size passes; a clip holds its decoder slot until it is queued,
so no more clips than there are slots have frames outside the queue; the encoder holds one batch, ``image_batch`` frames
plus the rest of its last clip. Vectors: at most ``queue_bytes`` wait for the store (with the same overrun), and as many
are being written. The threads of the loop and of the store, which start a clip's next event, never block.
"""

from __future__ import annotations

import datetime as dt
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import structlog
import tenacity

from streamer import faults
from streamer.events import ClipEmbedded, ClipUploaded, InvalidEvent, Reason, check_id, now
from streamer.kafka import Outputs, dead_letter
from streamer.machine import machine_error
from streamer.shortages import Shortages
from streamer.stages import Stage, Turns
from streamer.store import Clip, Position, PutOutcome, StoreUnavailableError
from streamer.topology import EMBED
from streamer.video import ClipError
from streamer.video.fetching.fetcher import retries

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
"""Most uploads in flight; each takes memory only while it is loaded, encoded or stored."""

_WAITING = 24
"""Clips that may wait for their sources without occupying a decoder slot."""
_WAITING_OF_ONE_ORIGIN = 8
"""How many of those may have the same origin (host or bucket), so that a slow source does not delay the others."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A valid upload whose file is to be fetched."""

    in_flight: InFlightRecord
    event: ClipUploaded
    origin: str
    """Where the file is fetched from, however its URI spells that; uploads of one origin take turns."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoded clip that waits for the encoder."""

    in_flight: InFlightRecord
    event: ClipUploaded
    sampled: SampledClip[Any]


@dataclass(frozen=True, slots=True)
class Upsert:
    """An encoded clip that waits for the store; its frames are released.

    ``times_ms`` (n,): each frame's time. ``vectors`` (n * vectors_per_frame, dim) float32. ``partial``: the file is
    damaged, and only a part of it could be decoded.
    """

    in_flight: InFlightRecord
    event: ClipUploaded
    times_ms: npt.NDArray[np.uint32]
    duration_ms: int
    partial: bool
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Delete:
    """A valid delete that waits for the store."""

    in_flight: InFlightRecord
    clip_id: str


class Decoder(Protocol):
    """Decodes and samples files, as :class:`~streamer.video.DecodePool` does."""

    def sampled(self, path: Path) -> AbstractContextManager[SampledClip[Any]]:
        """Return a clip's prepared frames; the clip holds its decoder slot for the length of the block."""
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
        self._max_clock_skew = dt.timedelta(seconds=settings.max_clock_skew)
        self._image_batch = settings.image_batch or encoder.image_batch
        self._fetching = metrics.stage.labels("fetch")
        self._shortages = Shortages(metrics, health)
        for stage in ("load", "encode", "store", "delete"):
            metrics.retries.labels(stage)
        self._turns: Turns[InFlightRecord] = Turns(1)
        self._origins: Turns[Upload] = Turns(settings.decode_workers + _WAITING_OF_ONE_ORIGIN)
        traced = settings.tracing != "off"
        parts: dict[str, Any] = {"metrics": metrics, "health": health, "shortages": self._shortages}
        shared = parts | {"failed": self._failed, "trace_of": (lambda item: item.in_flight.trace) if traced else None}
        self._storing: Stage[Upsert] = Stage(
            "store",
            self._store_batch,
            capacity=settings.queue_bytes,
            size=_bytes_to_store,
            batch_limit=MAX_RECORDS,
            **shared,
        )
        self._deleting: Stage[Delete] = Stage("delete", self._delete_batch, **shared)
        self._encoding: Stage[Loaded] = Stage(
            "encode",
            self._encode_batch,
            capacity=settings.queue_bytes,
            size=lambda loaded: sum(frame.nbytes for frame in loaded.sampled.frames),  # arrays or tensors
            batch_limit=self._image_batch,
            weigh=lambda loaded: len(loaded.sampled.frames),
            begin=encoder.warm_up,
            **shared,
        )
        self._loading: Stage[Upload] = Stage(
            "load", self._load_batch, threads=settings.decode_workers + _WAITING, **shared
        )
        self._reading: Stage[InFlightRecord] = Stage(
            "read",
            self._read_batch,
            failed=self._failed_record,
            trace_of=(lambda in_flight: in_flight.trace) if traced else None,
            **parts,
        )

    def submit(self, records: Sequence[InFlightRecord]) -> None:
        """Take records in flight; each one's ``complete`` is called from one of the stages' threads."""
        for in_flight in records:
            if self._turns.take(in_flight.record.key, in_flight):
                self._reading.put_at_once(in_flight)

    # -- read ----------------------------------------------------------------------------------------------

    def _read_batch(self, records: list[InFlightRecord]) -> None:
        for in_flight in records:
            try:
                job = self._read(in_flight)
            except (InvalidEvent, ClipError) as refused:
                self._done(in_flight, [dead_letter(in_flight.record, refused.reason, refused.detail)])
                continue
            if isinstance(job, Delete):
                self._deleting.put_at_once(job)
            elif self._origins.take(job.origin, job):
                self._loading.put_at_once(job)

    def _read(self, in_flight: InFlightRecord) -> Upload | Delete:
        """Decode a record's upload or delete. Raises :class:`InvalidEvent`, or :class:`ClipError` for a refused URI."""
        record = in_flight.record
        if record.value is None and record.key is not None:
            return Delete(in_flight, _clip_id_of_delete(record.key))
        event = self._codec.decode(ClipUploaded, record.value, record.key)
        self._check_version(event, record)
        return Upload(in_flight, event, self._fetcher.origin(event.uri))

    def _check_version(self, event: ClipUploaded, record: Record) -> None:
        """Raise :class:`InvalidEvent` for an upload that no later one could replace: the newest version wins."""
        if (ahead := event.uploaded_at - record.latest_write) > self._max_clock_skew:
            raise InvalidEvent(Reason.FROM_THE_FUTURE, f"uploaded_at is {ahead} after the time of the record")

    # -- load ----------------------------------------------------------------------------------------------

    def _load_batch(self, uploads: list[Upload]) -> None:
        for upload in uploads:
            self._load_upload(upload)
            self._end_turn(upload)

    def _end_turn(self, upload: Upload) -> None:
        if (following := self._origins.end(upload.origin)) is not None:
            self._loading.put_at_once(following)

    def _load_upload(self, upload: Upload) -> None:
        in_flight = upload.in_flight
        if in_flight.revoked:
            self._done(in_flight, [])
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
                self._done(in_flight, [dead_letter(in_flight.record, error.reason, error.detail, attempts=attempts)])
            else:
                self._metrics.frames_decoded.inc(sampled.decoded)
                self._metrics.frames_duplicate.inc(len(sampled.times_ms) - len(sampled.frames))
                self._metrics.partial.inc(sampled.partial)
                self._metrics.recoloured.inc(sampled.recoloured)
                self._encoding.put(Loaded(in_flight, upload.event, sampled))

    def _load(self, upload: Upload, place: ExitStack) -> SampledClip[Any]:
        """Fetch, decode and sample; a clip with frames releases its decoder slot when ``place`` closes."""
        with ExitStack() as source:
            began = time.time_ns()
            with self._fetching.time():
                path = source.enter_context(self._fetcher.fetch(upload.event.uri))
            upload.in_flight.trace_stage("fetch", began)
            began = time.time_ns()
            with self._health.idle():  # decoding has its own time limit, and waiting for a slot may take long
                sampled = place.enter_context(self._decoder.sampled(path))
            upload.in_flight.trace_stage("decode", began, frames=len(sampled.frames))
            return sampled

    # -- encode --------------------------------------------------------------------------------------------

    def _encode_batch(self, batch: list[Loaded]) -> None:
        try:
            encoded = self._encoded(batch)
        except Exception as error:
            if len(batch) == 1 or machine_error(error) is not None:
                raise
            log.exception("encoding failed, retrying each clip alone", clips=len(batch))
            self._metrics.retries.labels("encode").inc()
            self._each_alone(self._encode_batch, batch)
            return
        for each in encoded:
            self._storing.put(each)

    def _encoded(self, batch: Sequence[Loaded]) -> list[Upsert]:
        """Encode clips together. What needs memory is done here, before any of them goes to the store."""
        vectors = self._encode([frame for loaded in batch for frame in loaded.sampled.frames])
        encoded, first = [], 0
        for in_flight, event, sampled in ((each.in_flight, each.event, each.sampled) for each in batch):
            count = len(sampled.frames)
            # A copy, because a view would keep the whole batch's vectors in memory.
            own = vectors[first : first + count][sampled.frame_of].reshape(-1, self._encoder.dim)
            encoded.append(Upsert(in_flight, event, sampled.times_ms, sampled.duration_ms, sampled.partial, own))
            first += count
        return encoded

    def _encode(self, frames: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Encode prepared frames in batches: (n, vectors_per_frame, dim)."""
        chunks = []
        for i in range(0, len(frames), self._image_batch):
            faults.reach(faults.FaultPoint.ENCODING)
            chunks.append(self._encoder.encode_images(frames[i : i + self._image_batch]))
            self._health.progress()
        self._metrics.frames_encoded.inc(len(frames))
        return np.concatenate(chunks)

    # -- store ---------------------------------------------------------------------------------------------

    def _store_batch(self, batch: list[Upsert]) -> None:
        try:
            self._store_all(batch)
        except Exception as error:
            if len(batch) == 1 or machine_error(error) is not None:
                raise
            log.exception("storing failed, retrying each record alone", records=len(batch))
            self._metrics.retries.labels("store").inc()
            self._each_alone(self._store_all, batch)

    def _store_all(self, uploads: Sequence[Upsert]) -> None:
        left = [each for each in uploads if each.in_flight.outputs is None]
        self._persist("store", self._put, left)
        for each in left:
            outputs = [] if each.in_flight.revoked else [self._announcement(each)]
            self._done(each.in_flight, outputs, each.event)

    def _put(self, uploads: Sequence[Upsert]) -> None:
        current = [each for each in uploads if not each.in_flight.revoked]
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
                self._metrics.freshness.observe(fresh_s, each.in_flight.exemplar)

    def _clip(self, upsert: Upsert) -> Clip:
        return Clip(
            clip_id=upsert.event.clip_id,
            uploaded_at=upsert.event.uploaded_at,
            position=_position(upsert.in_flight.record),
            duration_ms=upsert.duration_ms,
            vectors=upsert.vectors,
            times_ms=np.repeat(upsert.times_ms, self._encoder.vectors_per_frame),
        )

    def _announcement(self, upsert: Upsert) -> Output:
        """Make the clips.embedded event.

        A superseded upload is announced like any other, with its own ``uploaded_at``: whether the store already has a
        newer upload depends on the timing of crashes, but the output must depend only on the input partition.
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
        return self._outputs.of(upsert.in_flight, event.clip_id, self._codec.encode(event))

    # -- delete --------------------------------------------------------------------------------------------

    def _delete_batch(self, batch: list[Delete]) -> None:
        for delete in batch:
            self._persist("delete", self._remove, delete)
            self._health.ready("delete")  # also after a revoked one, so that no delete waits any more
            self._done(delete.in_flight, [])

    def _remove(self, delete: Delete) -> None:
        in_flight = delete.in_flight
        if in_flight.revoked:
            return
        self._store.delete(delete.clip_id, in_flight.record.timestamp, _position(in_flight.record))
        faults.reach(faults.FaultPoint.STORED)
        self._metrics.deleted.inc()

    def _persist(self, stage: str, write: Callable[..., None], *arguments: Any) -> None:
        """Write to the store, retrying until it succeeds; each attempt skips records revoked in the meantime.

        A stage is a condition of readiness of its own: deletes that succeed do not show that uploads can be stored.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((StoreUnavailableError, OSError, MemoryError)),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            before_sleep=partial(self._store_unavailable, stage),
        )
        retrying(write, *arguments)

    def _store_unavailable(self, stage: str, state: tenacity.RetryCallState) -> None:
        self._metrics.retries.labels(stage).inc()
        self._health.progress()
        self._health.not_ready(stage, str(state.outcome.exception() if state.outcome else "") or "unavailable")

    # -- ends ----------------------------------------------------------------------------------------------

    def _each_alone(self, work: Callable[[list[Any]], None], batch: Sequence[Loaded | Upsert]) -> None:
        for item in batch:
            try:
                self._shortages.wait_out(partial(work, [item]))
            except Exception as error:  # noqa: BLE001 - reported with its record
                self._failed(item, error)

    def _done(self, in_flight: InFlightRecord, outputs: Sequence[Output], uploaded: ClipUploaded | None = None) -> None:
        in_flight.complete(outputs, since=uploaded.uploaded_at if uploaded else None)
        if (following := self._turns.end(in_flight.record.key)) is not None:
            self._reading.put_at_once(following)

    def _failed(self, item: Upload | Loaded | Upsert | Delete, error: Exception) -> None:
        reason = Reason.ENCODE_FAILED if isinstance(item, Loaded) else Reason.INTERNAL
        if isinstance(item, Upload):
            self._end_turn(item)
        self._failed_record(item.in_flight, error, reason)

    def _failed_record(self, in_flight: InFlightRecord, error: Exception, reason: Reason = Reason.INTERNAL) -> None:
        """Dead-letter a record on which our own code or the model failed, so that its partition continues."""
        if in_flight.outputs is not None:
            return
        log.error("embedding failed", place=in_flight.record.place, exc_info=error)
        self._done(in_flight, [dead_letter(in_flight.record, reason, f"{type(error).__name__}: {error}")])


def _bytes_to_store(upsert: Upsert) -> int:
    return upsert.vectors.nbytes


def _position(record: Record) -> Position:
    return Position.of(record.log, record.offset, record.leader_epoch)


def _clip_id_of_delete(key: bytes) -> str:
    try:
        clip_id = key.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(Reason.WRONG_TYPE, f"the key of a delete is not UTF-8: {error}") from None
    check_id("key", clip_id)
    return clip_id
