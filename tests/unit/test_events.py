"""The event models: what decodes, what is refused with which reason, and what is written."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.codec import JSON
from streamer.events import (
    MAX_EVENT_BYTES,
    MAX_NESTING,
    MAX_QUERY_CHARS,
    MAX_RESULTS,
    Candidate,
    ClipUploaded,
    InvalidEvent,
    QueryResults,
    Reason,
    now,
)

QUERY: dict[str, Any] = {
    "query_id": "q1",
    "query": "a man on a red bicycle",
    "engine": "bm25-v3",
    "issued_at": "2026-11-24T10:00:00Z",
    "results": [{"clip_id": "c1", "score": 12.3}, {"clip_id": "c2", "score": 7}],
}
UPLOAD: dict[str, Any] = {"clip_id": "c1", "uri": "file:///c1.mp4", "uploaded_at": "2026-11-24T10:00:00+09:00"}


def reason_of(model: type, value: bytes | None, key: bytes | None = None) -> Reason:
    with pytest.raises(InvalidEvent) as refused:
        JSON.decode(model, value, key)
    return refused.value.reason


def query(**changes: Any) -> bytes:
    return json.dumps({**QUERY, **changes}).encode()


def test_a_query_result_decodes_with_its_types() -> None:
    event = JSON.decode(QueryResults, query(user_key="u", surplus={"ignored": 1}), b"q1")
    assert event.results[1] == Candidate(clip_id="c2", score=7.0)
    assert event.issued_at == dt.datetime(2026, 11, 24, 10, tzinfo=dt.UTC)
    assert event.user_key == "u"


def test_an_upload_keeps_its_instant_whatever_its_offset() -> None:
    event = JSON.decode(ClipUploaded, orjson.dumps(UPLOAD), b"c1")
    assert event.uploaded_at == dt.datetime(2026, 11, 24, 1, tzinfo=dt.UTC)
    assert event.attributes == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.EMPTY),
        (b"{", Reason.NOT_JSON),
        (b'{"a": "\xff"}', Reason.NOT_JSON),
        (b"[" * 5000, Reason.NOT_JSON),
        (b"[]", Reason.WRONG_TYPE),
        (b"null", Reason.WRONG_TYPE),
        (b" " * (MAX_EVENT_BYTES + 1), Reason.TOO_LARGE),
        (query(query="   \n"), Reason.BLANK_QUERY),
        (query(query=""), Reason.BLANK_QUERY),
        (query(query="\u3000\u00a0"), Reason.BLANK_QUERY),
        (query(query=5), Reason.WRONG_TYPE),
        (query(query="x" * (MAX_QUERY_CHARS + 1)), Reason.LIMIT_EXCEEDED),
        (query(query_id=""), Reason.LIMIT_EXCEEDED),
        (query(query_id="é" * 257), Reason.LIMIT_EXCEEDED),
        (query(issued_at="2026-11-24T10:00:00"), Reason.WRONG_TYPE),
        (query(issued_at="yesterday"), Reason.WRONG_TYPE),
        (query(issued_at="0001-01-01T00:00:00+14:00"), Reason.LIMIT_EXCEEDED),
        (query(results=None), Reason.WRONG_TYPE),
        (query(results=[{"clip_id": "c"}]), Reason.WRONG_TYPE),
        (query(results=[{"clip_id": "c", "score": "1"}]), Reason.WRONG_TYPE),
        (query(results=[{"clip_id": "c", "score": True}]), Reason.WRONG_TYPE),
        (query(results=[{"clip_id": "c", "score": float("nan")}]), Reason.NON_FINITE_SCORE),
        (query(results=[{"clip_id": "c", "score": float("-inf")}]), Reason.NON_FINITE_SCORE),
        (query().replace(b"12.3", b"1e999"), Reason.NON_FINITE_SCORE),
        (query(results=[{"clip_id": "c", "score": 1}, {"clip_id": "c", "score": 2}]), Reason.DUPLICATE_CLIP_ID),
        (
            query(results=[{"clip_id": str(i), "score": 0} for i in range(MAX_RESULTS + 1)]),
            Reason.LIMIT_EXCEEDED,
        ),
    ],
)
def test_what_is_not_a_query_result_is_refused_with_its_reason(value: bytes | None, reason: Reason) -> None:
    assert reason_of(QueryResults, value) is reason


@pytest.mark.parametrize("missing", ["query_id", "query", "engine", "issued_at", "results"])
def test_every_field_but_user_key_is_needed(missing: str) -> None:
    value = {name: content for name, content in QUERY.items() if name != missing}
    assert reason_of(QueryResults, orjson.dumps(value)) is Reason.WRONG_TYPE


def test_a_key_must_be_the_events_id_where_there_is_one() -> None:
    assert reason_of(QueryResults, query(), b"q2") is Reason.KEY_MISMATCH
    assert reason_of(ClipUploaded, orjson.dumps(UPLOAD), b"") is Reason.KEY_MISMATCH
    assert JSON.decode(QueryResults, query(), None).query_id == "q1"


def test_an_event_at_all_size_limits_is_decoded() -> None:
    results = [{"clip_id": f"{i:05}", "score": -i} for i in range(MAX_RESULTS)]
    event = JSON.decode(QueryResults, query(query="x" * MAX_QUERY_CHARS, query_id="é" * 256, results=results))
    assert len(event.results) == MAX_RESULTS


@given(st.binary(max_size=200) | st.from_regex(r'\{"query(_id)?": .{0,40}\}').map(str.encode))
def test_any_bytes_decode_or_are_refused_and_nothing_else_happens(value: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        assert isinstance(JSON.decode(ClipUploaded, value), ClipUploaded)
    with contextlib.suppress(InvalidEvent):
        assert isinstance(JSON.decode(QueryResults, value), QueryResults)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(QUERY)), json_values)
def test_any_json_in_any_field_decodes_or_is_refused(field: str, value: object) -> None:
    try:
        event = JSON.decode(QueryResults, query(**{field: value}))
    except InvalidEvent:
        return
    assert event.query.strip()


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120)
candidates = st.lists(
    st.builds(Candidate, clip_id=ids, score=st.floats(allow_nan=False, allow_infinity=False)),
    max_size=20,
    unique_by=lambda candidate: candidate.clip_id,
)


@given(ids, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50).filter(str.strip), candidates)
def test_what_is_written_reads_back_the_same(query_id: str, text: str, results: list[Candidate]) -> None:
    event = QueryResults(query_id=query_id, query="q " + text, engine="", issued_at=now(), results=results)
    assert JSON.decode(QueryResults, JSON.encode(event), query_id.encode()) == event


def test_times_are_written_in_utc() -> None:
    assert (
        json.loads(JSON.encode(JSON.decode(ClipUploaded, orjson.dumps(UPLOAD))))["uploaded_at"]
        == "2026-11-24T01:00:00Z"
    )
    assert json.loads(JSON.encode(ClipUploaded(clip_id="c", uri="u", uploaded_at=now())))["uploaded_at"].endswith("Z")


def test_a_long_list_with_one_duplicate_at_its_end_is_refused_as_fast_as_it_is_read() -> None:
    results = [Candidate(clip_id=f"c{number}", score=0.0) for number in range(MAX_RESULTS)]
    looked_at = 0

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal looked_at
            looked_at += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    ids = [*(Counted(each.clip_id) for each in results[:-1]), Counted("c4998")]
    with pytest.raises(InvalidEvent, match="c4998"):
        QueryResults(
            query_id="q",
            query="a",
            engine="e",
            issued_at=now(),
            results=[Candidate(clip_id=each, score=0.0) for each in ids],
        )
    assert looked_at < 10 * MAX_RESULTS


@pytest.mark.parametrize(
    ("levels", "accepted"), [(1, True), (MAX_NESTING, True), (MAX_NESTING + 1, False), (1000, False)]
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_attributes_nest_only_so_deep(levels: int, accepted: bool, opening: str, closing: str) -> None:
    inner = opening * (levels - 1) + "0" + closing * (levels - 1)
    value = orjson.dumps(UPLOAD)[:-1] + f',"attributes":{{"a":{inner},"b":[]}}}}'.encode()
    if accepted:
        assert JSON.decode(ClipUploaded, value).attributes["b"] == []
        return
    with pytest.raises(InvalidEvent, match="attributes nest deeper than 64 levels") as caught:
        JSON.decode(ClipUploaded, value)
    assert caught.value.reason == Reason.LIMIT_EXCEEDED
