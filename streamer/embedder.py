"""Upload -> store, told as the story of one clip.

    submit    one upload or delete; those of one clip take turns, in the order of the log
    load      fetch the file, decode it, sample and prepare its frames      (several clips at the same time)
    encode    the frames of all clips that wait, in batches across clips    (one thread: the model is the bottleneck)
    store     one durable write for all clips that wait, one for each delete (one thread)

Each stage runs while the others do. A clip that fails for good is dead-lettered with the reason; a transient
fault of its source is retried with backoff for ``retry_for`` seconds, a fault of the store for as long as it
lasts: the store is ours, and no upload is to blame for it.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import tenacity

from streamer.events import ClipEmbedded, ClipUploaded, InvalidEvent, Reason, check_id, decode, encode, now
from streamer.kafka import Output, Work, carried, dead_letter
from streamer.stages import Stage
from streamer.store import Clip, PutOutcome, StoreUnavailableError
from streamer.video import ClipError, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import Settings
    from streamer.store import Store
    from streamer.video import Fetcher, SampledClip

log = structlog.get_logger()

GROUP = "streamer-embed"
INPUT, OUTPUT = "clips.uploaded", "clips.embedded"

MAX_RECORDS = 256
"""Most uploads in flight; each costs memory only while it is being loaded, encoded or stored."""

_LOADED_CLIPS = 4
"""Prepared clips that may wait for the encoder; the frames of a clip are its largest form in memory."""

_WAITING_SOURCES = 8
"""Clips that may wait for a slow or failing source without taking a decoder's place."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A clip on its way from the decoder to the encoder."""

    work: Work
    event: ClipUploaded
    sampled: SampledClip[Any]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A clip on its way from the encoder to the store. ``vectors`` (n * vectors_per_frame, dim) float32."""

    work: Work
    event: ClipUploaded
    sampled: SampledClip[Any]
    vectors: npt.NDArray[np.float32]


class Embedder:
    """The pipeline of ``streamer embed``."""

    def __init__(
        self,
        settings: Settings,
        *,
        encoder: Encoder,
        store: Store,
        fetcher: Fetcher,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._store = store
        self._fetcher = fetcher
        self._metrics = metrics
        self._health = health
        self._turns = Turns()
        self._decoders = threading.BoundedSemaphore(settings.decode_workers)
        shared: dict[str, Any] = {"failed": self._failed, "metrics": metrics, "health": health}
        # Unbounded, since the loop's own thread queues deletes and the store's thread what follows them; the
        # records in flight bound it.
        self._storing: Stage[Embedded | Work] = Stage("store", self._store_batch, batch_limit=MAX_RECORDS, **shared)
        self._encoding: Stage[Loaded] = Stage(
            "encode",
            self._encode_batch,
            capacity=_LOADED_CLIPS,
            batch_limit=settings.image_batch,
            weigh=lambda loaded: len(loaded.sampled.frames),
            **shared,
        )
        self._loading: Stage[Work] = Stage(
            "load", self._load_batch, threads=settings.decode_workers + _WAITING_SOURCES, **shared
        )

    def submit(self, works: Sequence[Work]) -> None:
        """Take records in flight; each one's ``done`` is called from one of the stages' threads."""
        for work in works:
            if self._turns.take(work):
                self._start(work)

    def _start(self, work: Work) -> None:
        is_delete = work.record.value is None and work.record.key is not None
        if is_delete:
            self._storing.put(work)
        else:
            self._loading.put(work)

    # -- load ----------------------------------------------------------------------------------------------

    def _load_batch(self, works: list[Work]) -> None:
        for work in works:
            if work.stale:
                self._done(work, [])
                continue
            attempts = 0
            try:
                event = decode(ClipUploaded, work.record.value, work.record.key)
                for attempt in self._retries_of_source():
                    with attempt:
                        attempts += 1
                        sampled = self._load(event)
            except InvalidEvent as invalid:
                self._done(work, [dead_letter(work.record, invalid.reason, invalid.detail)])
            except ClipError as error:
                self._done(work, [dead_letter(work.record, error.reason, error.detail, attempts=attempts)])
            else:
                self._metrics.frames_decoded.inc(sampled.decoded)
                self._encoding.put(Loaded(work, event, sampled))

    def _load(self, event: ClipUploaded) -> SampledClip[Any]:
        with self._fetcher.fetch(event.uri) as path, self._decoders:
            return sample(
                path,
                interval=self._settings.frame_interval,
                max_frames=self._settings.max_frames,
                prepare=self._encoder.prepare,
            )

    def _retries_of_source(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ClipError) and error.transient),
            wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=15),
            stop=tenacity.stop_before_delay(self._settings.retry_for),
            before_sleep=lambda _state: self._metrics.retries.labels("load").inc(),
            reraise=True,
        )

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
                except Exception as error:  # noqa: BLE001 - told with the clip that it belongs to
                    self._failed(loaded, error)
            return
        first = 0
        for loaded in batch:
            count = len(loaded.sampled.frames)
            own = vectors[first : first + count].reshape(-1, self._encoder.dim)
            self._storing.put(Embedded(loaded.work, loaded.event, loaded.sampled, own))
            first += count

    def _encode(self, frames: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Encode prepared frames in batches: (n, vectors_per_frame, dim)."""
        size = self._settings.image_batch
        chunks = [self._encoder.encode_images(frames[i : i + size]) for i in range(0, len(frames), size)]
        self._metrics.frames_encoded.inc(len(frames))
        return np.concatenate(chunks)

    # -- store ---------------------------------------------------------------------------------------------

    def _store_batch(self, batch: list[Embedded | Work]) -> None:
        uploads = [item for item in batch if isinstance(item, Embedded)]
        if uploads:
            outcomes = self._persist(self._store.put, [self._clip(each) for each in uploads])
            self._metrics.superseded.inc(sum(outcome is PutOutcome.SUPERSEDED for outcome in outcomes))
        for each in uploads:
            self._done(each.work, [self._announcement(each)], uploaded=each.event)
        for work in (item for item in batch if isinstance(item, Work)):
            if work.stale:
                self._done(work, [])
            else:
                self._delete(work)

    def _clip(self, embedded: Embedded) -> Clip:
        return Clip(
            clip_id=embedded.event.clip_id,
            uploaded_at=embedded.event.uploaded_at,
            duration_ms=embedded.sampled.duration_ms,
            vectors=embedded.vectors,
            times_ms=np.repeat(embedded.sampled.times_ms, self._encoder.vectors_per_frame),
        )

    def _announcement(self, embedded: Embedded) -> Output:
        """Make the clips.embedded event.

        A superseded upload is announced like any other, with its own ``uploaded_at``: whether the store already
        holds a newer one depends on where a crash fell, and what goes out must depend on the log alone.
        """
        event = ClipEmbedded(
            clip_id=embedded.event.clip_id,
            model_id=self._encoder.model_id,
            frames=len(embedded.sampled.frames),
            duration_ms=embedded.sampled.duration_ms,
            uploaded_at=embedded.event.uploaded_at,
            embedded_at=now(),
        )
        return Output(
            self._settings.topic(OUTPUT),
            event.clip_id.encode(),
            encode(event),
            carried(embedded.work.record.headers),
        )

    def _delete(self, work: Work) -> None:
        try:
            clip_id = _clip_id_of_delete(work)
        except InvalidEvent as invalid:
            self._done(work, [dead_letter(work.record, invalid.reason, invalid.detail)])
            return
        self._persist(self._store.delete, clip_id, work.record.timestamp)
        self._metrics.deleted.inc()
        self._done(work, [])

    def _persist(self, write: Any, *arguments: Any) -> Any:
        """Write to the store, for as long as it takes."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailableError),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
            before_sleep=self._store_is_away,
        )
        outcome = retrying(write, *arguments)
        self._health.holds("store")
        return outcome

    def _store_is_away(self, state: tenacity.RetryCallState) -> None:
        self._metrics.retries.labels("store").inc()
        self._health.wait_for("store", str(state.outcome.exception() if state.outcome else "unavailable"))

    # -- ends ----------------------------------------------------------------------------------------------

    def _done(self, work: Work, outputs: Sequence[Output], *, uploaded: ClipUploaded | None = None) -> None:
        work.done(outputs, since=uploaded.uploaded_at if uploaded else None)
        following = self._turns.end(work)
        if following is not None:
            self._start(following)

    def _failed(self, item: Loaded | Embedded | Work, error: Exception) -> None:
        """Dead-letter a record on which our own code or the model failed; its partition goes on."""
        work = item if isinstance(item, Work) else item.work
        if work.outputs is not None:
            return
        reason = Reason.ENCODE_FAILED if isinstance(item, Loaded) else Reason.INTERNAL
        log.error("embedding failed", place=work.record.place, exc_info=error)
        self._done(work, [dead_letter(work.record, reason, f"{type(error).__name__}: {error}")])


class Turns:
    """Lets the events of one clip happen one after the other, those of different clips at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[bytes, deque[Work]] = {}

    def take(self, work: Work) -> bool:
        """Return True where it is this event's turn; otherwise it waits for :meth:`end` to return it."""
        key = work.record.key
        if key is None:
            return True
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(work)
                return False
            self._waiting[key] = deque()
            return True

    def end(self, work: Work) -> Work | None:
        """End an event's turn; return the event of the same clip whose turn it is now."""
        key = work.record.key
        if key is None:
            return None
        with self._lock:
            if self._waiting[key]:
                return self._waiting[key].popleft()
            del self._waiting[key]
            return None


def _clip_id_of_delete(work: Work) -> str:
    try:
        clip_id = (work.record.key or b"").decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(Reason.WRONG_TYPE, f"the key of a delete is not UTF-8: {error}") from None
    check_id("key", clip_id)
    return clip_id
