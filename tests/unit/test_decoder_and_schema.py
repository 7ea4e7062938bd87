"""The decoder takes what the published JSON Schema takes, and nothing else, but for what no schema can say."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from streamer.codec import JSON
from streamer.events import ClipUploaded, InvalidEvent, QueryResults, Reason
from streamer.foreign_formats import recognised

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS = Path(__file__).parents[2] / "topics"
EVENTS: dict[type[QueryResults | ClipUploaded], tuple[str, dict[str, Any]]] = {
    QueryResults: (
        "query.results",
        {
            "query_id": "q",
            "query": "a man",
            "engine": "e",
            "issued_at": "2026-01-01T00:00:00Z",
            "user_key": "u",
            "results": [{"clip_id": "c1", "score": 1.5}, {"clip_id": "c2", "score": 1}],
        },
    ),
    ClipUploaded: (
        "clips.uploaded",
        {"clip_id": "c", "uri": "file:///c", "uploaded_at": "2026-01-01T00:00:00Z", "attributes": {"a": 1}},
    ),
}
BLANKS = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\ufeff"
TIMES = [
    "2016-12-31T23:59:60Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+01:00",
    "0001-01-01T00:00:00-01:00",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59+01:00",
    "2026-01-01T24:00:00Z",
    "2026-01-01t00:00:00z",
    "2026-01-01 00:00:00Z",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00+0100",
    "2026-01-01T00:00:00-00:00",
    "2026-01-01T00:00:00.1234567891Z",
    "2026-01-01T00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01T00:00:00,5Z",
    "2026-01-01",
    "2026-01-01T00:00:00",
    "20260101T000000Z",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**19, max_value=10**320),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(TIMES),
    st.datetimes().map(lambda at: f"{at.isoformat()}Z"),
    st.text(st.sampled_from(BLANKS + "a\u200b\x00"), max_size=3),
    st.sampled_from(["x" * length for length in (256, 257, 512, 513, 1_024, 1_025, 2_000, 2_001, 4_096, 4_097)]),
    st.sampled_from([[], {}, [1], {"clip_id": "c"}, [{"clip_id": "c", "score": 0}], [{"clip_id": ""}], [None]]),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=3),
    st.just({str(number): number for number in range(257)}),
)


@cache
def validator(topic: str) -> Draft202012Validator:
    schema = json.loads((TOPICS / f"{topic}.schema.json").read_bytes())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def refusal(model: type[QueryResults | ClipUploaded], value: bytes) -> InvalidEvent | None:
    try:
        JSON.decode(model, value)  # type: ignore[type-var]  # either of them
    except InvalidEvent as invalid:
        return invalid
    return None


@st.composite
def mutated(draw: st.DrawFn) -> tuple[type[QueryResults | ClipUploaded], dict[str, Any]]:
    """Draw an event of which some fields are missing, unknown or of other values."""
    model = draw(st.sampled_from(list(EVENTS)))
    document: dict[str, Any] = json.loads(json.dumps(EVENTS[model][1]))
    for _ in range(draw(st.integers(1, 2))):
        holders = [document, *(each for each in document.get("results") or () if isinstance(each, dict))]
        holder = draw(st.sampled_from(holders)) if isinstance(document.get("results"), list) else document
        name = draw(st.sampled_from([*holder, "unknown"]))
        if draw(st.integers(0, 5)) == 0:
            holder.pop(name, None)
        else:
            holder[name] = draw(VALUES)
    return model, document


@given(mutated())
def test_the_decoder_takes_what_the_schema_takes(
    case: tuple[type[QueryResults | ClipUploaded], dict[str, Any]],
) -> None:
    model, document = case
    invalid = refusal(model, json.dumps(document).encode())
    if invalid is not None and invalid.reason in (Reason.DUPLICATE_CLIP_ID, Reason.NON_FINITE_SCORE):
        return  # which no schema can say
    problems = [error.message for error in validator(EVENTS[model][0]).iter_errors(document)]
    assert (invalid is None) == (not problems), (invalid, problems)


@pytest.mark.parametrize("at", TIMES)
def test_the_decoder_takes_the_times_that_the_schema_takes(at: str) -> None:
    document = EVENTS[QueryResults][1] | {"issued_at": at}
    is_valid = validator("query.results").is_valid(document)
    invalid = refusal(QueryResults, json.dumps(document).encode())
    assert (invalid is None) is is_valid
    assert invalid is None or invalid.reason in (Reason.WRONG_TYPE, Reason.LIMIT_EXCEEDED)


@pytest.mark.parametrize("blank", BLANKS)
def test_a_query_of_white_space_is_blank_to_both(blank: str) -> None:
    document = EVENTS[QueryResults][1] | {"query": blank * 2}
    invalid = refusal(QueryResults, json.dumps(document).encode())
    assert invalid is not None
    assert invalid.reason is Reason.BLANK_QUERY
    assert not validator("query.results").is_valid(document)


def with_page(number: str) -> bytes:
    """Return query results with a field more, which no model knows."""
    return json.dumps(EVENTS[QueryResults][1]).replace("{", f'{{"page": {number}, ', 1).encode()


HUGE = ["1" * 401, "-" + "1" * 5_000, "1e400", "-1e400"]


@pytest.mark.parametrize("number", HUGE)
def test_a_number_beyond_a_double_is_no_score_and_is_ignored_where_fields_are(number: str) -> None:
    text = json.dumps(EVENTS[QueryResults][1])
    invalid = refusal(QueryResults, text.replace("1.5", number).encode())
    assert invalid is not None
    assert invalid.reason is Reason.NON_FINITE_SCORE
    assert refusal(QueryResults, with_page(f"[{number}]")) is None
    # A field that is the queries' own is one more unknown field in an upload.
    upload = json.dumps(EVENTS[ClipUploaded][1]).replace("{", f'{{"results": [{{"score": {number}}}], ', 1)
    assert refusal(ClipUploaded, upload.encode()) is None


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_is_not_json_has_a_reason_of_its_own_as_a_score_alone(constant: str) -> None:
    text = json.dumps(EVENTS[QueryResults][1])
    as_score = refusal(QueryResults, text.replace("1.5", constant).encode())
    elsewhere = refusal(QueryResults, with_page(constant))
    assert as_score is not None
    assert elsewhere is not None
    assert (as_score.reason, elsewhere.reason) == (Reason.NON_FINITE_SCORE, Reason.NOT_JSON)


def test_what_json_lets_pass_and_orjson_does_not_stays_refused_beside_a_large_number() -> None:
    text = json.dumps(EVENTS[QueryResults][1]).replace("a man", "\\ud800").replace("1.5", "1e400")
    invalid = refusal(QueryResults, text.encode())
    assert invalid is not None
    assert invalid.reason is Reason.NOT_JSON


def in_text(encoding: str) -> Callable[[bytes], bytes]:
    return lambda value: value.decode().encode(encoding)


@pytest.mark.parametrize(
    ("encode", "name"),
    [
        (lambda value: b"\x00\x00\x00\x00\x07" + value, "Confluent wire format, schema id 7"),
        (lambda value: b"\x03\x00" + bytes(16) + value, "AWS Glue"),
        (lambda value: b"\xc3\x01" + bytes(8) + value, "Avro"),
        (lambda value: b"\x1f\x8b" + value, "gzip"),
        (lambda value: b"\x28\xb5\x2f\xfd" + value, "Zstandard"),
        (in_text("utf-16"), "UTF-16"),
        (in_text("utf-16-le"), "UTF-16"),
        (in_text("utf-16-be"), "UTF-16"),
        (in_text("utf-32"), "UTF-32"),
        (in_text("utf-8-sig"), "byte order mark"),
        (lambda _: b"\x0a\x02q1\x12\x01x", "Protocol Buffers"),
        (lambda _: b"\x83\xa8query_id\xa2q1", "MessagePack"),
        (lambda _: b"<event/>", "XML"),
    ],
)
def test_another_format_is_named_in_the_error(encode: Callable[[bytes], bytes], name: str) -> None:
    invalid = refusal(QueryResults, encode(json.dumps(EVENTS[QueryResults][1]).encode()))
    assert invalid is not None
    assert invalid.reason is Reason.NOT_JSON
    assert "it looks like" in invalid.detail
    assert name in invalid.detail


def test_a_document_that_wraps_an_event_is_named_too() -> None:
    event = EVENTS[QueryResults][1]
    for document, name in (
        (json.dumps(event), "JSON twice"),
        ({"specversion": "1.0", "id": "1", "data": event}, "structured mode"),
        ({"schema": {}, "payload": event}, "Kafka Connect"),
    ):
        invalid = refusal(QueryResults, json.dumps(document).encode())
        assert invalid is not None
        assert name in invalid.detail


@given(st.binary(max_size=40))
def test_the_format_of_any_bytes_is_recognised(value: bytes) -> None:
    assert recognised(value) != ""
