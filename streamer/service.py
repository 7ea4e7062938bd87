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
from streamer.encoders import Encoder, QueryVectors, Side, load_model
from streamer.endpoints import Access, Endpoints
from streamer.health import Health
from streamer.kafka import FatalError, Loop, Pipeline, Stop
from streamer.method import FixedPolicy
from streamer.metrics import Metrics
from streamer.settings import SettingsError, blame, unknown_variables
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
    from collections.abc import Iterator
    from types import FrameType

    from streamer.settings import (
        EmbedSettings,
        IntakeSettings,
        MetricsSettings,
        ModelSettings,
        Precision,
        RerankSettings,
        StoreSettings,
    )

log = structlog.get_logger()

SIDES_OF: dict[str, tuple[Side, ...]] = {EMBED.role: ("images",), RERANK.role: ("texts",)}
"""What each service wants of its model."""
_LEAVE_S = 1.5
"""Time for leaving the group and closing the store, after the drain."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Service:
    """What every service has: its name, its metrics, its probes, its traces where they are on, and the wish to stop."""

    command: str
    metrics: Metrics
    health: Health
    tracing: Tracing | None
    stop: Stop
    started: threading.Event


def run_embedder(settings: EmbedSettings) -> NoReturn:
    """Run the embedder until SIGTERM and end the process: exit code 0, or 1 after a fatal fault.

    Raises :class:`SettingsError`.
    """
    settings.named_model()
    fetcher = _fetcher(settings)
    if settings.worker_stall_timeout <= settings.fetch_timeout:
        raise blame("worker_stall_timeout", f"must be more than fetch_timeout, which is {settings.fetch_timeout:g}")
    with _service(EMBED.role, settings) as service:
        loop = Loop(
            settings,
            EMBED,
            max_records=embedder.MAX_RECORDS,
            metrics=service.metrics,
            health=service.health,
            tracing=service.tracing,
        )
        encoder = _encoder(settings, service)
        store = _store(settings, encoder, service, precision=settings.precision, read_only=False)
        pipeline = embedder.Embedder(
            settings,
            codec=JSON,
            encoder=encoder,
            store=store,
            fetcher=fetcher,
            decoder=_decoder(_sampling(settings), settings, encoder, service.metrics),
            metrics=service.metrics,
            health=service.health,
        )
        _serve(service, loop, pipeline, store)


def run_reranker(settings: RerankSettings) -> NoReturn:
    """Run the reranker until SIGTERM and end the process: exit code 0, or 1 after a fatal fault.

    Raises :class:`SettingsError`.
    """
    settings.named_model()
    with _service(RERANK.role, settings) as service:
        loop = Loop(
            settings,
            RERANK,
            max_records=reranker.MAX_RECORDS,
            metrics=service.metrics,
            health=service.health,
            tracing=service.tracing,
        )
        encoder = _encoder(settings, service)
        store = _store(settings, encoder, service, read_only=True)
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


# -- the parts -----------------------------------------------------------------------------------------------


def _fetcher(intake: IntakeSettings) -> Fetcher:
    try:
        return Fetcher(
            intake.allowed_uris,
            allowed_networks=intake.allowed_networks,
            max_bytes=intake.max_clip_bytes,
            timeout=intake.fetch_timeout,
            first_byte_timeout=intake.first_byte_timeout,
        )
    except ValueError as error:
        raise blame("allowed_uris", error) from None


def _sampling(settings: EmbedSettings) -> Sampling:
    return Sampling(
        interval=settings.frame_interval,
        max_frames=settings.max_frames,
        max_pixels=settings.max_clip_pixels,
        max_seconds=settings.max_clip_seconds,
        max_packets=settings.max_clip_packets,
        duplicate_threshold=settings.duplicate_threshold,
    )


def _decoder(sampling: Sampling, intake: IntakeSettings, encoder: Encoder, metrics: Metrics) -> DecodePool:
    replaced = metrics.decoders_replaced
    for cause in ("crashed", "timeout"):
        replaced.labels(cause)  # shown before there is one, so that the first is seen as an increase
    waiting, decoding = metrics.queue_wait.labels("decode"), metrics.stage.labels("decode")

    def timed(waited: float, took: float) -> None:
        waiting.observe(waited)
        decoding.observe(took)

    return DecodePool(
        sampling,
        encoder.prepare,
        workers=intake.decode_workers,
        timeout=intake.decode_timeout,
        memory=intake.decode_memory,
        replaced=lambda cause: replaced.labels(cause).inc(),
        timed=timed,
    )


def _encoder(settings: ModelSettings, service: Service) -> Encoder:
    encoder = load_model(settings, sides=SIDES_OF[service.command])
    encoder.warm_up()
    metrics = service.metrics
    metrics.build_info.labels(__version__, service.command, encoder.model_id).set(1)
    metrics.model_info.labels(settings.named_model(), encoder.model_id, encoder.computes_in, encoder.computes_on).set(1)
    log.info("model loaded", model=settings.model, pretrained=settings.pretrained, model_id=encoder.model_id)
    return encoder


def _store(
    settings: StoreSettings, encoder: Encoder, service: Service, *, precision: Precision = "float16", read_only: bool
) -> Store:
    try:
        store = open_store(
            settings.store,
            model_id=encoder.model_id,
            dim=encoder.dim,
            precision=precision,
            read_only=read_only,
            options=StoreOptions.of(settings),
        )
    except (StoreError, StoreUnavailableError) as error:
        raise blame("store", error) from None
    # The writer counts; a walk over all keys is not for those that answer queries.
    StoreWatch(store, encoder.model_id, metrics=service.metrics, health=service.health, counts=not read_only)
    return MeasuredStore(store, service.metrics)


# -- running -------------------------------------------------------------------------------------------------


@contextmanager
def _service(command: str, settings: EmbedSettings | RerankSettings) -> Iterator[Service]:
    """Serve probes and metrics from the first moment, and turn signals into a stop."""
    _check_environment()
    tracing = Tracing.of(settings, command, settings.instance_id)
    metrics = Metrics(settings.group(SERVICES[command].group))
    health = Health(metrics, worker_stall_timeout=settings.worker_stall_timeout)
    server = _endpoints(settings, command, metrics, health)
    log.info("starting", command=command, version=__version__, metrics_port=server.port)
    service = Service(command, metrics, health, tracing, Stop(), threading.Event())
    _stop_on_signals(service, settings.drain_timeout)
    try:
        yield service
    finally:
        server.close()


def _check_environment() -> None:
    for name in unknown_variables(besides=[faults.VARIABLE]):
        log.warning("unknown variable, misspelt?", variable=name)
    try:
        fault_point = faults.arm()
    except ValueError as error:
        raise SettingsError(f"{faults.VARIABLE}: {error}") from None
    if fault_point is not None:
        log.warning("a fault point is armed: this process will harm itself", fault_point=fault_point)


def _endpoints(settings: MetricsSettings, command: str, metrics: Metrics, health: Health) -> Endpoints:
    access = Access.of(settings)
    port = settings.metrics_port if settings.metrics_port is not None else SERVICES[command].metrics_port
    try:
        return Endpoints(health, metrics, host=settings.metrics_host, port=port, access=access)
    except OSError as error:
        raise blame("metrics_port", f"cannot listen on {settings.metrics_host}:{port}: {error}") from None


def _stop_on_signals(service: Service, drain_timeout: float) -> None:
    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not service.started.is_set():
            # Loading a large model takes minutes, and there is nothing to finish yet.
            os._exit(0)
        service.stop.set()
        # Asked twice, it ends at once, even inside a library's call: work in flight is the next owner's then.
        for again in STOP_SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        # A frozen broker holds up even the leaving of the group.
        limit = threading.Timer(drain_timeout + _LEAVE_S, _exit_at_once, [0])
        limit.daemon = True
        limit.start()
        log.info("stopping", signal=signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)


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
