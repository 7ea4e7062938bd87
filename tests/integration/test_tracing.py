"""Traces of both services at a receiver of OTLP/HTTP, and what their logs say of good and bad records meanwhile.

Without the setting headers are carried unchanged: test_outside_driver.py.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.driver import (
    EMBEDDED,
    RERANKED,
    RESULTS,
    UPLOADED,
    Bus,
    Record,
    Service,
    apply_topics,
    environment,
)
from tests.support.footage import GREEN, WHITE, scene, write_video
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

AT = "2026-11-24T10:00:00Z"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = 200
KEY = "of-the-collector"


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]


@contextmanager
def receiver() -> Iterator[tuple[str, list[Span]]]:
    """Serve OTLP/HTTP; yields its address and what has come."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["api-key"] == KEY
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            for of_resource in request.resource_spans:
                about = {each.key: each.value.string_value for each in of_resource.resource.attributes}
                for scope in of_resource.scope_spans:
                    spans.extend(read(about["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(service: str, span: Any) -> Span:
    attributes = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        attributes,
    )


def query(number: int, **changes: object) -> Record:
    event = {"query_id": f"q{number}", "query": "a cat", "engine": "e", "issued_at": AT, "results": []} | changes
    headers = (
        [("traceparent", f"00-{TRACE}-{PARENT}-01".encode()), ("tracestate", b"rojo=1"), ("ce_tenant", b"7")]
        if number == 0
        else []
    )
    return Record.of(f"q{number}", event, headers)


def test_a_records_trace_goes_through_every_stage_and_on_to_what_it_causes(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    clip = write_video(tmp_path / "c1.mp4", scene(10, shape=GREEN, ground=WHITE), 10)
    headers = tmp_path / "headers"
    headers.write_text(f"api-key={KEY}\n")
    with receiver() as (endpoint, spans):
        variables = environment(
            bus,
            tmp_path / "store",
            [tmp_path],
            STREAMER_TRACING="otlp",
            STREAMER_TRACING_HEADERS_FILE=str(headers),
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_BSP_SCHEDULE_DELAY="200",
        )
        apply_topics(variables, tmp_path)
        with Service("embed", variables, tmp_path) as embedder, Service("rerank", variables, tmp_path) as reranker:
            both = [embedder, reranker]
            for service in both:
                service.await_ready(seconds=150)
            quiet = log_of(reranker)
            upload = {"clip_id": "c1", "uri": clip.as_uri(), "uploaded_at": AT}
            bus.publish(UPLOADED, [Record.of("c1", upload, [("traceparent", f"00-{TRACE}-{PARENT}-01".encode())])])
            bus.publish(RESULTS, [query(number) for number in range(GOOD)])
            [bad] = bus.publish(RESULTS, [query(GOOD, query=" ")])
            wait_until(lambda: len(bus.read(RERANKED)) == GOOD, "the answers", seconds=120, alive=both)
            wait_until(lambda: len(bus.read(f"{RESULTS}.dlq")) == 1, "the dead letter", seconds=120, alive=both)
            wait_until(lambda: len(bus.read(EMBEDDED)) == 1, "the clip", seconds=120, alive=both)
            told = log_of(reranker)[len(quiet) :]
            for service in both:
                service.stop()

    answer = next(each for each in bus.read(RERANKED) if each.key == b"q0")
    check_trace(spans, answer, f"{topic_prefix}{RESULTS}", "streamer-rerank", {"rerank", "text", "score", "commit"})
    [embedded] = bus.read(EMBEDDED)
    stages = {"read", "load", "fetch", "decode", "encode", "store", "commit"}
    check_trace(spans, embedded, f"{topic_prefix}{UPLOADED}", "streamer-embed", stages)
    assert answer.header("ce_tenant") == "7"
    assert answer.header("tracestate") == "rojo=1"

    # Whoever sent no traceparent gets a trace of his own; each good record has one, and so does the bad one.
    processed = [span for span in spans if span.name == f"{topic_prefix}{RESULTS} process"]
    assert len({span.trace for span in processed}) == len(processed) == GOOD + 1
    assert [span.attributes.get("error.type") for span in processed].count("blank_query") == 1
    [letter] = bus.read(f"{RESULTS}.dlq")
    assert "traceparent" not in dict(letter.headers)  # a dead letter keeps what its record had

    assert [line["event"] for line in told] == ["dead letter"]
    place = (told[0]["topic"], told[0]["partition"], told[0]["offset"], told[0]["key"], told[0]["reason"])
    assert place == (f"{topic_prefix}{RESULTS}", bad.partition, bad.offset, f"q{GOOD}", "blank_query")


def log_of(service: Service) -> list[dict[str, Any]]:
    """Return what a service has logged so far, but for lines that are not whole yet."""
    return [json.loads(line) for line in service._log.read_text().splitlines() if line.endswith("}")]


def check_trace(spans: list[Span], output: Record, topic: str, service: str, stages: set[str]) -> None:
    """Show that the record behind an output has one span below its parent's, and one below that for each stage."""
    version, trace, span_id, flags = output.header("traceparent").split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    [root] = [span for span in spans if span.id == span_id]
    assert (root.name, root.trace, root.parent, root.service) == (f"{topic} process", TRACE, PARENT, service)
    assert root.attributes["messaging.system"] == "kafka"
    assert root.attributes["messaging.destination.name"] == topic
    below = [span for span in spans if span.parent == span_id]
    assert {span.name for span in below} == stages
    for span in below:
        assert (span.trace, span.service) == (TRACE, service)
        assert root.began <= span.ended
        assert span.began <= span.ended
