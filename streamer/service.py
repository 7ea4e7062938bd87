"""Assembles a service from its settings, runs it and stops it, for ``streamer embed`` and ``streamer rerank``."""

from __future__ import annotations

import faulthandler
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
from streamer.encoders import Encoder, Side, load_model
from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.kafka import FatalError, Loop, Pipeline, Stop
from streamer.machine import MachineError, machine_error, start
from streamer.method import FixedPolicy
from streamer.metrics import Metrics
from streamer.process import hide_memory
from streamer.resources import Usage, available, contradictions, resident
from streamer.settings import SettingsError, invalid_setting, unknown_variables
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
from streamer.video.isolation.confinement import MODES, Layer, SandboxError
from streamer.video.isolation.pool import MOST_PROCESSES, DecodePool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from streamer import topology
    from streamer.settings import (
        EmbedSettings,
        IntakeSettings,
        ModelSettings,
        Precision,
        RerankSettings,
        ServiceSettings,
        StoreSettings,
    )

log = structlog.get_logger()

SIDES_OF: dict[str, tuple[Side, ...]] = {EMBED.role: ("images",), RERANK.role: ("texts",)}
"""The sides of the model that each service loads."""
_LEAVE_S = 1.5
"""Seconds for leaving the group and closing the store after the drain."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of every service: its command, metrics, health, tracing if it is on, and the request to stop."""

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
    if settings.worker_stall_timeout <= settings.fetch_timeout:
        raise invalid_setting(
            "worker_stall_timeout", f"must be more than fetch_timeout, which is {settings.fetch_timeout:g}"
        )
    with _service(EMBED.role, settings) as service:
        fetcher = _fetcher(settings, service)
        loop = _loop(settings, EMBED, embedder.MAX_RECORDS, service)
        encoder = _encoder(settings, service)
        _compare_sizes(settings)
        store = _store(settings, encoder, service, precision=settings.precision, read_only=False)
        pipeline = embedder.Embedder(
            settings,
            codec=JSON,
            encoder=encoder,
            store=store,
            fetcher=fetcher,
            decoder=_decoder(_sampling(settings), settings, encoder, service),
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
        loop = _loop(settings, RERANK, reranker.MAX_RECORDS, service)
        encoder = _encoder(settings, service)
        bank = settings.read_match(encoder.model_id, encoder.dim)
        store = _store(settings, encoder, service, read_only=True)
        pipeline = reranker.Reranker(
            settings,
            FixedPolicy(settings.method),
            codec=JSON,
            queries=reranker.QueryVectors(encoder, settings.query_cache),
            model_id=encoder.model_id,
            store=store,
            metrics=service.metrics,
            health=service.health,
            bank=bank,
        )
        _serve(service, loop, pipeline, store)


# -- the parts -----------------------------------------------------------------------------------------------


def _loop(settings: ServiceSettings, names: topology.Service, max_records: int, service: Service) -> Loop:
    return Loop(
        settings,
        names,
        max_records=max_records,
        metrics=service.metrics,
        health=service.health,
        tracing=service.tracing,
    )


def _fetcher(intake: IntakeSettings, service: Service) -> Fetcher:
    try:
        fetcher = Fetcher(
            intake.named_uris(),
            allowed_networks=intake.allowed_networks,
            max_bytes=intake.max_clip_bytes,
            timeout=intake.fetch_timeout,
            first_byte_timeout=intake.first_byte_timeout,
            download_bytes=intake.download_bytes,
            idle=service.health.idle,
            waited=service.metrics.queue_wait.labels("fetch").observe,
        )
    except ValueError as error:
        raise invalid_setting("allowed_uris", error) from None
    for folder in fetcher.broad_folders():
        log.warning(
            "uploads may name private files: a prefix of allowed_uris is the root folder, or holds a home folder",
            folder=str(folder),
        )
    return fetcher


def _compare_sizes(settings: EmbedSettings) -> None:
    """Warn of sizes that do not fit into the machine; called when the model is loaded, the service's largest part."""
    usage = Usage(
        # Of frames and vectors as much may wait as of records.
        own=resident() + 3 * settings.queue_bytes,
        decoders=MOST_PROCESSES * settings.decode_workers * settings.decode_memory,
        downloads=settings.download_bytes,
    )
    try:
        found = contradictions(usage, available())
    except OSError as error:
        found = [f"there is no temporary folder: {error.strerror or error}"]
    for contradiction in found:
        log.warning("configured sizes exceed those of this machine", problem=contradiction)


def _sampling(settings: EmbedSettings) -> Sampling:
    return Sampling(
        interval=settings.frame_interval,
        max_frames=settings.max_frames,
        max_pixels=settings.max_clip_pixels,
        max_seconds=settings.max_clip_seconds,
        max_packets=settings.max_clip_packets,
        duplicate_threshold=settings.duplicate_threshold,
    )


def _decoder(sampling: Sampling, intake: IntakeSettings, encoder: Encoder, service: Service) -> DecodePool:
    metrics = service.metrics
    replaced = metrics.decoder_failures
    for cause in ("crashed", "timeout"):
        replaced.labels(cause)  # exposed from the start, so that the first failure is an increase

    def confined(layers: Layer) -> None:
        service.health.note("decoder sandbox", layers.mode)
        for mode in MODES:
            metrics.decoder_sandbox.labels(mode).set(mode == layers.mode)

    decoder = DecodePool(
        sampling,
        encoder.prepare,
        workers=intake.decode_workers,
        timeout=intake.decode_timeout,
        memory=intake.decode_memory,
        sandbox=intake.decoder_sandbox,
        confined=confined,
        replaced=lambda cause: replaced.labels(cause).inc(),
        waited=metrics.queue_wait.labels("decode").observe,
        decoded=metrics.stage.labels("decode").observe,
    )
    try:
        layers = decoder.layers
    except SandboxError as error:
        decoder.close()
        raise invalid_setting("decoder_sandbox", f"{error.detail}; permissive accepts that") from None
    except MachineError as error:
        # The first upload waits for it, and says so.
        log.warning("no decoder can be started yet, uploads wait", error=str(error))
    else:
        level = log.info if Layer.SECCOMP in layers else log.warning
        level("decoders are confined", by=layers.mode)
    return decoder


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
        raise invalid_setting("store", error) from None
    # Only the writer counts clips: counting reads all keys, which would slow rerankers down.
    StoreWatch(store, encoder.model_id, metrics=service.metrics, health=service.health, counts=not read_only)
    return MeasuredStore(store, service.metrics)


# -- running -------------------------------------------------------------------------------------------------


@contextmanager
def _service(command: str, settings: EmbedSettings | RerankSettings) -> Iterator[Service]:
    """Serve probes and metrics from the start, and stop the service on a signal."""
    _check_environment()
    hide_memory()
    faulthandler.enable(2)  # a native library that crashes the process leaves its threads' stacks on standard error
    tracing = Tracing.of(settings, command, settings.instance_id)
    metrics = Metrics(settings.group(SERVICES[command].group))
    health = Health(metrics, worker_stall_timeout=settings.worker_stall_timeout)
    server = Endpoints.of(settings, SERVICES[command].metrics_port, health, metrics)
    log.info("starting", command=command, version=__version__, metrics_port=server.port)
    service = Service(command, metrics, health, tracing, Stop(), threading.Event())
    _stop_on_signals(service, settings.drain_timeout)
    try:
        yield service
    finally:
        server.close()


def _check_environment() -> None:
    for name in unknown_variables(besides=[faults.VARIABLE]):
        log.warning("unknown environment variable, possibly misspelt", variable=name)
    try:
        fault_point = faults.arm()
    except ValueError as error:
        raise SettingsError(f"{faults.VARIABLE}: {error}") from None
    if fault_point is not None:
        log.warning("a fault point is armed: this process will inject a fault into itself", fault_point=fault_point)


def _stop_on_signals(service: Service, drain_timeout: float) -> None:
    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not service.started.is_set():
            # Loading a large model takes minutes, and no record is in flight yet.
            os._exit(0)
        service.stop.set()
        # A second signal ends the process at once, even inside a library call; the next owner takes over its records.
        for again in STOP_SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        # A frozen broker would block even leaving the group.
        seconds = drain_timeout + _LEAVE_S
        limit = threading.Timer(seconds, _exit_at_once, [0])
        limit.daemon = True
        try:
            start(limit)
        except MachineError:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # the kernel ends the process instead, by SIGALRM
        log.info("stopping", signal=signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)


def _serve(service: Service, loop: Loop, pipeline: Pipeline, store: Store) -> NoReturn:
    # The libraries' hundreds of thousands of objects live as long as the process, and each full garbage collection over
    # them would stop all threads for 0.3 s.
    gc.collect()
    gc.freeze()
    service.health.ready("start")
    service.started.set()
    try:
        finished = loop.run(pipeline, service.stop)
    except FatalError as error:
        log.error("fatal", error=str(error))  # noqa: TRY400 - the message is complete; a traceback would add nothing
        _exit_at_once(1)
    except Exception as error:
        lack = machine_error(error)
        if lack is None:
            log.exception("fatal")
        else:
            # What the loop had received may be half taken up: only a restart knows what that is.
            log.error("fatal", error=f"this machine is short of {lack}")  # noqa: TRY400 - as above
        _exit_at_once(1)
    if service.tracing is not None:
        service.tracing.close()
    if finished:
        store.close()
    log.info("stopped", finished=finished)
    _exit_at_once(0)


def _exit_at_once(code: int) -> NoReturn:
    """End the process without unwinding the interpreter.

    Everything that must be closed is closed by now. Unloading torch takes seconds, which exceeds the time for a stop,
    and after an unfinished drain threads may still be inside a decoder, the model or the store's memory.
    """
    logging.shutdown()
    os._exit(code)
