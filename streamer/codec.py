"""Codecs, which convert between the bytes of a record's value and an event. JSON is the only one so far.

Pipelines, readers and tools take a codec as an argument, so that another wire format needs no change in them.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import orjson

from streamer.events import (
    MAX_EVENT_BYTES,
    TIME,
    TIME_FIELDS,
    ClipEmbedded,
    ClipUploaded,
    Event,
    InvalidEvent,
    QueryReranked,
    QueryResults,
    Reason,
)
from streamer.foreign_formats import recognised, recognised_document

if TYPE_CHECKING:
    from collections.abc import Iterator

E = TypeVar("E", ClipUploaded, ClipEmbedded, QueryResults, QueryReranked)


class Codec(Protocol):
    """Reads and writes events. Its methods may be called from several threads."""

    @property
    def content_type(self) -> str:
        """The media type of what it writes (RFC 9110)."""
        ...

    def decode(self, model: type[E], value: bytes | None, key: bytes | None = None) -> E:
        """Read one record's value as ``model``.

        ``key`` is the record's key: if present it must be the event's id, because ordering, compaction and deletes
        depend on the key. Raises :class:`InvalidEvent` and nothing else.
        """
        ...

    def encode(self, event: Event) -> bytes:
        """Write an event."""
        ...


class JsonCodec:
    """JSON in UTF-8, one object per record.

    Decoding uses orjson, which accepts strict JSON only, and then msgspec, which checks types and limits. msgspec also
    encodes, in a third of the time that orjson takes for its structs.
    """

    content_type = "application/json"

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def decode(self, model: type[E], value: bytes | None, key: bytes | None = None) -> E:
        """Read one record's value, as :class:`Codec` says."""
        document = _load(model, value)
        try:
            event = msgspec.convert(document, model)
        except msgspec.ValidationError as error:
            # msgspec wraps only ValueError and TypeError of __post_init__, so InvalidEvent passes through.
            raise InvalidEvent(_classify(error), _hinted(str(error), recognised_document(document))) from None
        _check_times(model, document)
        check_key(event, key)
        return event

    def encode(self, event: Event) -> bytes:
        """Write an event as UTF-8 JSON; times end in ``Z``, fields keep the model's order."""
        return self._encoder.encode(event)


JSON = JsonCodec()
"""The one instance; it is stateless."""


def check_key(event: Event, key: bytes | None) -> None:
    """Raise :class:`InvalidEvent` if a record's key is not its event's id; every codec calls this."""
    identifier = event.clip_id if isinstance(event, ClipUploaded | ClipEmbedded) else event.query_id
    if key is not None and key != identifier.encode():
        raise InvalidEvent(Reason.KEY_MISMATCH, f"the key {key[:80]!r} is not the event's id {identifier[:80]!r}")


def _load(model: type[Event], value: bytes | None) -> Any:
    if not value:
        raise InvalidEvent(Reason.EMPTY, "the record has no value")
    if len(value) > MAX_EVENT_BYTES:
        raise InvalidEvent(Reason.TOO_LARGE, f"{len(value)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return _load_leniently(model, value, error)


def _load_leniently(model: type[Event], value: bytes, why: orjson.JSONDecodeError) -> Any:
    """Read a document with numbers beyond a double, which JSON may have; they are infinite, and no score may be.

    In fields that are ignored they are ignored too, as a JSON Schema does. NaN is never JSON; as a score it has a
    reason of its own.
    """
    constants = 0

    def constant(text: str) -> float:
        nonlocal constants
        constants += 1
        return float(text)

    try:
        # Decoded here, since json would guess at encodings other than UTF-8. An integer of thousands of digits becomes
        # a float, since Python refuses to make an int of it.
        document = json.loads(value.decode(), parse_int=_integer, parse_constant=constant)
        orjson.dumps(document)  # lone surrogates, which json lets pass
    except (ValueError, RecursionError, TypeError):
        raise InvalidEvent(Reason.NOT_JSON, _hinted(str(why), recognised(value))) from None
    scores = _scores(document) if "results" in model.__struct_fields__ else ()
    bad = next((score for score in scores if not math.isfinite(score)), None)
    if bad is not None:
        raise InvalidEvent(Reason.NON_FINITE_SCORE, f"a score is {bad if constants else 'out of range'}: {why}")
    if constants:
        raise InvalidEvent(Reason.NOT_JSON, f"NaN and Infinity are not JSON: {why}")
    return document


_MOST_DIGITS = 20
"""Of an integer of 64 bits, with its sign; larger ones are floats, as orjson has them."""


def _integer(text: str) -> int | float:
    number = int(text) if len(text) <= _MOST_DIGITS else math.inf
    return number if -(2**63) <= number < 2**64 else float(text)


def _scores(document: Any) -> Iterator[float]:
    results = document.get("results") if isinstance(document, dict) else None
    for candidate in results if isinstance(results, list) else ():
        if isinstance(candidate, dict):
            for name in _SCORES:
                if isinstance(candidate.get(name), float):
                    yield candidate[name]


_SCORES = ("score", "initial_score", "frame_score")


def _hinted(error: str, hint: str | None) -> str:
    return f"{error}; it looks like {hint}" if hint else error


def _check_times(model: type[Event], document: Any) -> None:
    """Refuse what msgspec takes for a time beside RFC 3339: a space for the T, an offset without its colon."""
    for name in TIME_FIELDS[model]:
        if not TIME.fullmatch(document[name]):
            raise InvalidEvent(Reason.WRONG_TYPE, f"{name} is not a time as RFC 3339 writes it: {document[name]!r:.80}")


_LIMIT_WORDS = ("length <=", "length >=")


def _classify(error: msgspec.ValidationError) -> Reason:
    """Distinguish an exceeded limit from a wrong type by msgspec's wording, which tests pin."""
    text = str(error)
    if text.endswith("`$.query`") and ("matching regex" in text or "length >= 1" in text):
        return Reason.BLANK_QUERY
    return Reason.LIMIT_EXCEEDED if any(word in text for word in _LIMIT_WORDS) else Reason.WRONG_TYPE
