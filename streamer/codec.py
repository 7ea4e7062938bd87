"""Codecs, which convert between the bytes of a record's value and an event. JSON is the only one so far.

Pipelines, readers and tools take a codec as an argument, so that another wire format needs no change in them.
"""

from __future__ import annotations

import json
import math
from typing import Any, Protocol, TypeVar

import msgspec
import orjson

from streamer.events import (
    MAX_EVENT_BYTES,
    ClipEmbedded,
    ClipUploaded,
    Event,
    InvalidEvent,
    QueryReranked,
    QueryResults,
    Reason,
)

E = TypeVar("E", ClipUploaded, ClipEmbedded, QueryResults, QueryReranked)


class Codec(Protocol):
    """Reads and writes events. Its methods may be called from several threads."""

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

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def decode(self, model: type[E], value: bytes | None, key: bytes | None = None) -> E:
        """Read one record's value, as :class:`Codec` says."""
        document = _load(value)
        try:
            event = msgspec.convert(document, model)
        except msgspec.ValidationError as error:
            # msgspec wraps only ValueError and TypeError of __post_init__, so InvalidEvent passes through.
            raise InvalidEvent(_classify(error), str(error)) from None
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


def _load(value: bytes | None) -> Any:
    if not value:
        raise InvalidEvent(Reason.EMPTY, "the record has no value")
    if len(value) > MAX_EVENT_BYTES:
        raise InvalidEvent(Reason.TOO_LARGE, f"{len(value)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        reason = Reason.NON_FINITE_SCORE if _has_non_finite(value) else Reason.NOT_JSON
        raise InvalidEvent(reason, str(error)) from None


def _has_non_finite(value: bytes) -> bool:
    """Return whether a document that orjson rejected is JSON except for NaN, Infinity or numbers such as 1e999."""
    found = False

    def number(text: str) -> float:
        nonlocal found
        parsed = float(text)
        found = found or not math.isfinite(parsed)
        return parsed

    try:
        # Decoded here because json would also accept other encodings than UTF-8.
        json.loads(value.decode(), parse_float=number, parse_constant=number)
    except (ValueError, RecursionError):
        return False
    return found


_LIMIT_WORDS = ("length <=", "length >=")


def _classify(error: msgspec.ValidationError) -> Reason:
    """Distinguish an exceeded limit from a wrong type by msgspec's wording, which tests pin."""
    text = str(error)
    if text.endswith("`$.query`") and ("matching regex" in text or "length >= 1" in text):
        return Reason.BLANK_QUERY
    return Reason.LIMIT_EXCEEDED if any(word in text for word in _LIMIT_WORDS) else Reason.WRONG_TYPE
