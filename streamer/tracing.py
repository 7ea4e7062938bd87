"""A trace of each record: spans by OpenTelemetry, in the trace that the record's ``traceparent`` names.

Off by default; then no tracing code runs for a record, and its context is copied to its outputs unchanged. When it
is on, a record has one span from its receipt to its commit, ``<topic> process``, whose parent is the record's own
``traceparent``, and a child span for each of its stages, named like the stage's metrics. The record's outputs have that
first span as their ``traceparent``, so that their consumers continue the trace.

Stages report their spans after their work, with both times, because they work in batches and in threads without a
record's context. The exporter, the sampling and the service name are set by OpenTelemetry's own variables
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``). A separate thread exports spans from
a bounded queue; if it is full, spans are dropped, and no record waits for it.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from streamer import __version__
from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.trace import Span, Tracer

    from streamer.settings import TracingSettings

Headers = tuple[tuple[str, bytes | None], ...]

TRACEPARENT, TRACESTATE, BAGGAGE = "traceparent", "tracestate", "baggage"
"""Headers of W3C's Trace Context and Baggage."""
_CONTEXT = (TRACEPARENT, TRACESTATE)
_FLUSH_MS = 1_000
"""Seconds for exporting the last spans when the service ends."""


_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf](-.*)?")
_NO_TRACE = "0" * 32


def exemplar(headers: Headers) -> dict[str, str] | None:
    """Return the trace in which a record was sampled, as the labels of an OpenMetrics exemplar; None where in none."""
    given = next((value for name, value in headers if name == TRACEPARENT and value), None)
    found = _TRACEPARENT.fullmatch(given) if given is not None else None
    if found is None or found[1].decode() == _NO_TRACE:
        return None
    return {"trace_id": found[1].decode(), "span_id": found[2].decode()}


class Tracing:
    """Creates the traces of one service's records."""

    def __init__(self, command: str, instance_id: str, headers: str | None = None) -> None:
        """Start the exporter. Raises ImportError if OpenTelemetry is not installed.

        ``headers``: those of each request to the collector, in the form of ``OTEL_EXPORTER_OTLP_HEADERS``, which they
        replace.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.util.re import parse_env_headers  # noqa: PLC0415

        given = None if headers is None else parse_env_headers(headers, liberal=True)
        about = {"service.version": __version__, "service.instance.id": instance_id}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = f"streamer-{command}"
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(headers=given)))
        self._tracer = self._provider.get_tracer("streamer", __version__)

    @classmethod
    def of(cls, settings: TracingSettings, command: str, instance_id: str) -> Tracing | None:
        """Set up tracing as configured; None if it is off. Raises SettingsError if the extra is missing."""
        if settings.tracing == "off":
            return None
        try:
            return cls(command, instance_id, settings.read_tracing_headers())
        except ImportError as error:
            hint = f"needs the package {error.name}: pip install 'cliprerank-streamer[otel]'"
            raise invalid_setting("tracing", hint) from None

    def begin(self, topic: str, partition: int, offset: int, headers: Headers) -> Trace:
        """Begin the span of a record that has been received."""
        return Trace(self._tracer, topic, partition, offset, headers)

    def close(self) -> None:
        """Export the remaining spans, within a second."""
        self._provider.force_flush(_FLUSH_MS)


class Trace:
    """The span of one record and those of its stages; for one thread at a time."""

    def __init__(self, tracer: Tracer, topic: str, partition: int, offset: int, headers: Headers) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context  # noqa: PLC0415 - see Tracing
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        propagator = TraceContextTextMapPropagator()
        given = {name: (value or b"").decode("ascii", "replace") for name, value in headers if name in _CONTEXT}
        self._tracer = tracer
        self._span: Span = tracer.start_span(
            f"{topic} process",
            propagator.extract(given),
            SpanKind.CONSUMER,
            {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
            },
        )
        self._context = set_span_in_context(self._span)
        carrier: dict[str, str] = {}
        propagator.inject(carrier, self._context)
        self._propagated = tuple((name, text.encode()) for name, text in carrier.items())

    def propagated(self, headers: Headers) -> Headers:
        """Return the headers of what the record causes, with this span as its parent.

        ``tracestate`` goes on where its ``traceparent`` was valid; otherwise W3C has it discarded.
        """
        return (*(each for each in headers if each[0] not in _CONTEXT), *self._propagated)

    def stage(self, name: str, began_ns: int, **attributes: Any) -> None:
        """Report a stage that has just ended; ``began_ns``: nanoseconds since 1970."""
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=began_ns).end()

    def end(self, *, dead_letter: str | None) -> None:
        """End the record's span; ``dead_letter`` is the reason if the record was dead-lettered."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - see Tracing

        if dead_letter is not None:
            self._span.set_attribute("error.type", dead_letter)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def stages(traces: Iterable[Trace | None], name: str, began_ns: int, **attributes: Any) -> None:
    """Report a stage that has just ended to each of the traces."""
    for trace in traces:
        if trace is not None:
            trace.stage(name, began_ns, **attributes)


def since(seconds: float) -> int:
    """Return the time ``seconds`` ago, in nanoseconds since 1970."""
    return time.time_ns() - round(seconds * 1e9)
