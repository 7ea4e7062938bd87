"""The headers and the time of what a record causes."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from streamer.kafka import InFlightRecord, Outputs, Record
from streamer.kafka.outputs import GROUP, carried
from streamer.kafka.records import text_of
from streamer.settings import load
from streamer.topology import EMBED, RERANK

if TYPE_CHECKING:
    from streamer.kafka import Output
    from streamer.kafka.records import Headers
    from streamer.topology import Service

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
EVENT: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"in-1"),
    ("ce_source", b"/engine"),
    ("ce_type", b"com.example.results"),
    ("ce_time", b"2026-11-24T10:00:00Z"),
    ("ce_subject", b"s"),
    ("ce_dataschema", b"urn:schema"),
    ("ce_dataref", b"s3://bucket/value"),
    ("content-type", b"application/json; charset=utf-8"),
)
EXTENSIONS: Headers = (("ce_tenant", b"acme"), ("ce_partitionkey", b"p"), ("ce_traceparent", b"00-2"))
TRACE: Headers = (
    ("traceparent", b"00-1"),
    ("tracestate", b"rojo=1"),
    ("tracestate", b"congo=2"),
    ("baggage", b"user=1"),
)


def output_of(
    headers: Headers = (),
    service: Service = RERANK,
    *,
    offset: int = 7,
    leader_epoch: int | None = None,
    timestamp_ms: int = -1,
    **settings: Any,
) -> Output:
    record = Record(
        *("in", 3, offset, b"k", b"{}", headers, AT),
        log="topic-id-3",
        timestamp_ms=timestamp_ms,
        group="streamer-rerank",
        leader_epoch=leader_epoch,
    )
    in_flight = InFlightRecord(record, lambda: None)
    return Outputs(load(settings), service, "application/json").of(in_flight, "q1", b"{}")


def fields(output: Output) -> dict[str, bytes]:
    names = [name for name, _ in output.headers if name != "tracestate"]
    assert len(set(names)) == len(names)
    return cast("dict[str, bytes]", dict(output.headers))


def test_trace_context_baggage_and_extensions_are_carried_and_nothing_else() -> None:
    assert carried((*EVENT, *EXTENSIONS, ("x-shard", b"1"), *TRACE)) == (*EXTENSIONS, *TRACE)


@pytest.mark.parametrize("name", ["ce_ID", "ce_Type", "CE_id", "ce-id", "ce_", "ce_time ", "ce_schemaurl"])
def test_what_some_readers_take_for_the_causes_own_attributes_is_not_carried(name: str) -> None:
    assert carried(((name, b"1"), *EXTENSIONS)) == EXTENSIONS


def test_an_output_of_a_cloud_event_is_an_event_of_its_own() -> None:
    output = output_of((*EVENT, *EXTENSIONS, *TRACE))
    found = fields(output)
    assert output.headers[-len(EXTENSIONS + TRACE) :] == (*EXTENSIONS, *TRACE)
    assert dt.datetime.fromisoformat(found.pop("ce_time").decode()).tzinfo is dt.UTC
    assert {name: value for name, value in found.items() if (name, value) not in EXTENSIONS + TRACE} == {
        "content-type": b"application/json",
        "streamer.group": b"streamer-rerank",
        "ce_specversion": b"1.0",
        "ce_id": b"rerank-topic-id-3-7",
        "ce_source": b"/streamer-rerank",
        "ce_type": b"io.cliprerank.query.reranked.v1",
        "ce_subject": b"q1",
    }


def test_an_output_names_the_group_that_made_it() -> None:
    output = output_of(group_suffix="-blue", topic_prefix="eu.")
    assert fields(output)["streamer.group"] == b"eu.streamer-rerank-blue"
    assert text_of(output.headers, GROUP) == "eu.streamer-rerank-blue"


def test_an_event_that_is_answered_again_has_the_same_id_and_another_one_another() -> None:
    first, again, other = (fields(output_of(EVENT, offset=offset))["ce_id"] for offset in (7, 7, 8))
    assert first == again != other


def test_events_of_two_records_that_had_the_same_offset_are_different() -> None:
    lost, new = (fields(output_of(EVENT, leader_epoch=epoch))["ce_id"] for epoch in (3, 4))
    assert (lost, new) == (b"rerank-topic-id-3-3-7", b"rerank-topic-id-3-4-7")


def test_the_source_names_the_group_or_is_what_a_setting_says() -> None:
    named: dict[str, Any] = {"topic_prefix": "eu.", "group_suffix": "-blue"}
    assert fields(output_of(EVENT, EMBED, **named))["ce_source"] == b"/eu.streamer-embed-blue"
    assert fields(output_of(EVENT, EMBED))["ce_type"] == b"io.cliprerank.clips.embedded.v1"
    assert fields(output_of(EVENT, cloudevents_source="urn:example"))["ce_source"] == b"urn:example"


@pytest.mark.parametrize(
    ("headers", "mode", "is_event"),
    [
        ((), "auto", False),
        (EVENT, "auto", True),
        ((("ce_id", b"1"),), "auto", True),
        (EXTENSIONS, "auto", False),
        ((), "on", True),
        (EVENT, "off", False),
    ],
)
def test_an_output_is_a_cloud_event_where_its_cause_is_or_a_setting_says_so(
    headers: Headers, mode: str, *, is_event: bool
) -> None:
    found = fields(output_of(headers, cloudevents=mode))
    assert ("ce_id" in found) is is_event
    assert ("ce_specversion" in found) is is_event
    assert found["content-type"] == b"application/json"


def test_an_output_has_the_time_of_its_cause_or_the_current_one() -> None:
    now_ms = round(time.time() * 1_000)
    for at in (1, now_ms - 86_400_000, now_ms, now_ms + 60_000):
        assert output_of(timestamp_ms=at).timestamp == at
    assert output_of(timestamp_ms=now_ms, output_timestamps="now").timestamp is None
    for at in (-1, 0, now_ms * 1_000):  # none, none, microseconds
        assert output_of(timestamp_ms=at).timestamp is None


TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("traceparent", "is_shown"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{'0' * 32}-{SPAN_ID}-01", False),
        (f"00-{TRACE_ID[1:]}-{SPAN_ID}-01", False),
        ("", False),
    ],
)
def test_the_latency_of_a_sampled_trace_has_its_id(traceparent: str, *, is_shown: bool) -> None:
    record = Record("in", 0, 0, None, None, (("other", b""), ("traceparent", traceparent.encode())), AT)
    expected = {"trace_id": TRACE_ID, "span_id": SPAN_ID} if is_shown else None
    assert InFlightRecord(record, lambda: None).exemplar == expected
