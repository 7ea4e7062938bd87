"""Puts a service together from its settings, runs it, and ends it: what ``streamer embed`` and ``rerank`` do."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import structlog

from streamer import __version__, embedder, faults, reranker
from streamer.codec import JSON
from streamer.encoders import Encoder, EncoderError, QueryVectors, Side, load_encoder
from streamer.endpoints import Access, Endpoints
from streamer.health import Health
from streamer.kafka import FatalError, Loop, Pipeline, Stop
from streamer.method import FixedPolicy
from streamer.metrics import Metrics
from streamer.settings import Settings, SettingsError, blame, unknown_variables
from streamer.store import (
    MeasuredStore,
    Store,
    StoreError,
    StoreOptions,
    StoreUnavailableError,
    StoreWatch,
    open_store,
)
from streamer.topology import EMBED, RERANK, SERVICES
from streamer.tracing import Tracing
from streamer.video import Sampling
from streamer.video.fetching.fetcher import Fetcher
from streamer.video.isolation.pool import DecodePool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

log = structlog.get_logger()

SIDES_OF: dict[str, tuple[Side, ...]] = {EMBED.role: ("images",), RERANK.role: ("texts",)}
"""What each service wants of its model."""
_LEAVE_S = 1.5
"""Time for leaving the group and closing the store, after the drain."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Service:
    """What every service has: its metrics, its probes, its traces where they are on, and the wish to stop."""

    metrics: Metrics
    health: Health
    tracing: Tracing | None
    stop: Stop
    started: threading.Event


def run_embedder(settings: Settings) -> NoReturn:
    """Run the embedder until SIGTERM and end the process: exit code 0, or 1 after a fatal fault.

    Raises :class:`SettingsError`.
    """
    try:
        fetcher = Fetcher(
            settings.allowed_uris,
            allowed_networks=settings.allowed_networks,
            max_bytes=settings.max_clip_bytes,
            timeout=settings.fetch_timeout,
            first_byte_timeout=settings.first_byte_timeout,
        )
    except ValueError as error:
        raise blame("allowed_uris", error) from None
    if settings.stuck_after <= settings.fetch_timeout:
        raise blame("stuck_after", f"must be more than fetch_timeout, which is {settings.fetch_timeout:g}")
    with _service(settings, EMBED.role) as service:
        loop = Loop(
            settings,
            EMBED,
            max_records=embedder.MAX_RECORDS,
            metrics=service.metrics,
            health=service.health,
            tracing=service.tracing,
        )
        encoder = _load_encoder(settings, EMBED.role, service.metrics)
        store = _open_store(settings, encoder, service, read_only=False)
        replaced = service.metrics.decoders_replaced
        for cause in ("crashed", "timeout"):
            replaced.labels(cause)  # shown before there is one, so that the first is seen as an increase
        decoder = DecodePool(
            Sampling(
                interval=settings.frame_interval,
                max_frames=settings.max_frames,
                max_pixels=settings.max_clip_pixels,
                max_seconds=settings.max_clip_seconds,
                max_packets=settings.max_clip_packets,
                duplicate_threshold=settings.duplicate_threshold,
            ),
            encoder.prepare,
            workers=settings.decode_workers,
            timeout=settings.decode_timeout,
            memory=settings.decode_memory,
            replaced=lambda cause: replaced.labels(cause).inc(),
            timed=_timed_decodes(service.metrics),
        )
        pipeline = embedder.Embedder(
            settings,
            codec=JSON,
            encoder=encoder,
            store=store,
            fetcher=fetcher,
            decoder=decoder,
            metrics=service.metrics,
            health=service.health,
        )
        _serve(service, loop, pipeline, store)


def run_reranker(settings: Settings) -> NoReturn:
    """Run the reranker until SIGTERM and end the process: exit code 0, or 1 after a fatal fault.

    Raises :class:`SettingsError`.
    """
    with _service(settings, RERANK.role) as service:
        loop = Loop(
            settings,
            RERANK,
            max_records=reranker.MAX_RECORDS,
            metrics=service.metrics,
            health=service.health,
            tracing=service.tracing,
        )
        encoder = _load_encoder(settings, RERANK.role, service.metrics)
        store = _open_store(settings, encoder, service, read_only=True)
        pipeline = reranker.Reranker(
            settings,
            FixedPolicy(settings.method),
            codec=JSON,
            queries=QueryVectors(encoder, settings.query_cache),
            model_id=encoder.model_id,
            store=store,
            metrics=service.metrics,
            health=service.health,
        )
        _serve(service, loop, pipeline, store)


@contextmanager
def _service(settings: Settings, command: str) -> Iterator[Service]:
    """Serve probes and metrics from the first moment, and turn signals into a stop."""
    for name in unknown_variables(besides=[faults.VARIABLE]):
        log.warning("unknown variable, misspelt?", variable=name)
    try:
        fault_point = faults.arm()
    except ValueError as error:
        raise SettingsError(f"{faults.VARIABLE}: {error}") from None
    if fault_point is not None:
        log.warning("a fault point is armed: this process will harm itself", fault_point=fault_point)
    tracing = Tracing.of(settings, command)
    metrics = Metrics(settings.group(SERVICES[command].group))
    health = Health(metrics, stuck_after=settings.stuck_after)
    port = settings.metrics_port if settings.metrics_port is not None else SERVICES[command].metrics_port
    try:
        server = Endpoints(health, metrics, host=settings.metrics_host, port=port, access=Access.of(settings))
    except OSError as error:
        raise blame("metrics_port", f"cannot listen on {settings.metrics_host}:{port}: {error}") from None
    log.info("starting", command=command, version=__version__, metrics_port=server.port)
    service = Service(metrics, health, tracing, Stop(), threading.Event())

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not service.started.is_set():
            # Loading a large model takes minutes, and there is nothing to finish yet.
            os._exit(0)
        service.stop.set()
        # Asked twice, it ends at once, even inside a library's call: work in flight is the next owner's then.
        for again in STOP_SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        # A frozen broker holds up even the leaving of the group.
        limit = threading.Timer(settings.drain_timeout + _LEAVE_S, _exit_at_once, [0])
        limit.daemon = True
        limit.start()
        log.info("stopping", signal=signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield service
    finally:
        server.close()


def _load_encoder(settings: Settings, command: str, metrics: Metrics) -> Encoder:
    try:
        encoder = load_encoder(
            settings.model,
            settings.pretrained,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
            sides=SIDES_OF[command],
        )
    except EncoderError as error:
        raise blame(error.setting, error) from None
    encoder.warm_up()
    metrics.build_info.labels(__version__, command, encoder.model_id).set(1)
    metrics.model_info.labels(settings.model, encoder.model_id, encoder.computes_in, encoder.computes_on).set(1)
    log.info("model loaded", model=settings.model, pretrained=settings.pretrained, model_id=encoder.model_id)
    return encoder


def _timed_decodes(metrics: Metrics) -> Callable[[float, float], None]:
    waiting, decoding = metrics.queue_wait.labels("decode"), metrics.stage.labels("decode")

    def timed(waited: float, took: float) -> None:
        waiting.observe(waited)
        decoding.observe(took)

    return timed


def _open_store(settings: Settings, encoder: Encoder, service: Service, *, read_only: bool) -> Store:
    try:
        store = open_store(
            settings.store,
            model_id=encoder.model_id,
            dim=encoder.dim,
            precision=settings.precision,
            read_only=read_only,
            options=StoreOptions.of(settings),
        )
    except (StoreError, StoreUnavailableError) as error:
        raise blame("store", error) from None
    # The writer counts; a walk over all keys is not for those that answer queries.
    StoreWatch(store, encoder.model_id, metrics=service.metrics, health=service.health, counts=not read_only)
    return MeasuredStore(store, service.metrics)


def _serve(service: Service, loop: Loop, pipeline: Pipeline, store: Store) -> NoReturn:
    # The libraries' objects, hundreds of thousands, are here to stay: each time the collector goes through them, every
    # thread stands still for 0.3 s.
    gc.collect()
    gc.freeze()
    service.health.ready("start")
    service.started.set()
    try:
        finished = loop.run(pipeline, service.stop)
    except FatalError as error:
        log.error("fatal", error=str(error))  # noqa: TRY400 - the message says all; a traceback says nothing more
        _exit_at_once(1)
    except Exception:
        log.exception("fatal")
        _exit_at_once(1)
    if service.tracing is not None:
        service.tracing.close()
    if finished:
        store.close()
    log.info("stopped", finished=finished)
    _exit_at_once(0)


def _exit_at_once(code: int) -> NoReturn:
    """End without unwinding the interpreter.

    What must be closed is closed. Taking torch apart takes seconds, which a stop does not have, and after an
    unfinished drain threads may still be inside a decoder, the model or the store's memory.
    """
    logging.shutdown()
    os._exit(code)
