"""20,000 mutated events through the codec: each decodes to what the contract allows, or is refused with a reason."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from streamer.codec import JSON
from streamer.events import (
    MAX_ATTRIBUTES,
    MAX_ENGINE_CHARS,
    MAX_EVENT_BYTES,
    MAX_ID_BYTES,
    MAX_QUERY_CHARS,
    MAX_RESULTS,
    MAX_URI_CHARS,
    MAX_USER_KEY_CHARS,
    ClipUploaded,
    InvalidEvent,
    QueryResults,
    Reason,
)
from tests.fuzz.mutations import mutated, queries, uploads

if TYPE_CHECKING:
    from tests.fuzz.mutations import Mutated

E = TypeVar("E", ClipUploaded, QueryResults)

ABOUT_THE_EVENT = {
    Reason.EMPTY, Reason.TOO_LARGE, Reason.NOT_JSON, Reason.WRONG_TYPE, Reason.LIMIT_EXCEEDED, Reason.BLANK_QUERY,
    Reason.NON_FINITE_SCORE, Reason.DUPLICATE_CLIP_ID, Reason.KEY_MISMATCH,
}  # fmt: skip
ABOUT_QUERIES_ALONE = {Reason.BLANK_QUERY, Reason.DUPLICATE_CLIP_ID, Reason.NON_FINITE_SCORE}

MAX_DETAIL_CHARS = 100 + 10 * MAX_ID_BYTES
"""Our words and one identifier, of which a byte is written with ten characters at most."""

THOROUGH = settings(
    max_examples=10_000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def check_id(identifier: str) -> None:
    assert 1 <= len(identifier.encode()) <= MAX_ID_BYTES


def check_query(event: QueryResults) -> None:
    check_id(event.query_id)
    assert event.query.strip()
    assert len(event.query) <= MAX_QUERY_CHARS
    assert len(event.engine) <= MAX_ENGINE_CHARS
    assert len(event.user_key or "") <= MAX_USER_KEY_CHARS
    assert event.issued_at.tzinfo is dt.UTC
    assert len(event.results) <= MAX_RESULTS
    assert len({candidate.clip_id for candidate in event.results}) == len(event.results)
    for candidate in event.results:
        check_id(candidate.clip_id)
        assert type(candidate.score) is float
        assert math.isfinite(candidate.score)


def check_upload(event: ClipUploaded) -> None:
    check_id(event.clip_id)
    assert 1 <= len(event.uri) <= MAX_URI_CHARS
    assert event.uploaded_at.tzinfo is dt.UTC
    assert len(event.attributes) <= MAX_ATTRIBUTES


def outcome(model: type[E], record: Mutated) -> Reason | None:
    """Decode a record, check what comes of it, and return why it was refused, None where it was not."""
    try:
        event = JSON.decode(model, record.value, record.key)
    except InvalidEvent as error:
        refused = error
    else:
        check_decoded(model, event, record)
        return None
    assert refused.reason in ABOUT_THE_EVENT
    assert 0 < len(refused.detail) <= MAX_DETAIL_CHARS
    assert refused.detail.isprintable()
    return refused.reason


DIGITS = 20
"""Of the integers that orjson reads as floats, and 19 of some."""


def document_of(value: bytes) -> dict[str, Any]:
    """Return a document as orjson reads it, with infinities for the numbers that orjson refuses."""
    try:
        document: dict[str, Any] = orjson.loads(value)
    except orjson.JSONDecodeError:
        document = json.loads(value, parse_int=lambda text: int(text) if len(text) < DIGITS else float(text))
    return document


def check_decoded(model: type[E], event: E, record: Mutated) -> None:
    assert len(record.value or b"") <= MAX_EVENT_BYTES
    identifier = event.query_id if isinstance(event, QueryResults) else event.clip_id
    assert record.key in {None, identifier.encode()}
    if isinstance(event, QueryResults):
        check_query(event)
    else:
        check_upload(event)
        assert event.attributes == document_of(record.value or b"").get("attributes", {})
        # Attributes may be nested deeper than orjson writes; no event that goes out has any.
        event = msgspec.structs.replace(event, attributes={})
    assert JSON.decode(model, JSON.encode(event), record.key) == event


@pytest.fixture
def outcomes() -> Counter[Reason | None]:
    return Counter()


def test_10000_mutated_queries_are_decoded_or_refused(outcomes: Counter[Reason | None]) -> None:
    @THOROUGH
    @given(mutated(queries(["c1", "c2", "c3", "漢字"])))
    def check(record: Mutated) -> None:
        outcomes[outcome(QueryResults, record)] += 1

    check()
    check_coverage(outcomes, ABOUT_THE_EVENT)


def test_10000_mutated_uploads_are_decoded_or_refused(outcomes: Counter[Reason | None]) -> None:
    @THOROUGH
    @given(mutated(uploads(["file:///clips/c1.mp4", "https://cdn.example.com/c1.mp4?a=b"])))
    def check(record: Mutated) -> None:
        outcomes[outcome(ClipUploaded, record)] += 1

    check()
    check_coverage(outcomes, ABOUT_THE_EVENT - ABOUT_QUERIES_ALONE)


def check_coverage(outcomes: Counter[Reason | None], reasons: set[Reason]) -> None:
    """Show that the mutations went everywhere: a strategy that makes one kind of garbage alone shows nothing."""
    assert outcomes.keys() == {*reasons, None}, outcomes
    assert outcomes.total() >= 10_000
    assert outcomes[None] >= 1_000
    assert all(outcomes[reason] >= 5 for reason in reasons), outcomes
