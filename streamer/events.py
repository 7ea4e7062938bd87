"""The events of the four topics: typed models and their limits; :mod:`streamer.codec` reads and writes them.

The models are the one source of the JSON Schemas in ``topics/`` (:func:`json_schema`); unknown fields are
ignored. Rules that a schema cannot express (unique clip ids, an offset in every time, how deep attributes nest) are
checked in ``__post_init__`` and raise the same :class:`InvalidEvent`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import msgspec.structs

MAX_EVENT_BYTES = 1_048_576
"""Largest record value that is parsed; Kafka's default for a topic is 1,048,588."""
MAX_RESULTS = 5_000
"""Most candidates of one query; 1,000 is the depth of TRECVID runs."""
MAX_QUERY_CHARS = 2_000
MAX_ID_BYTES = 512
"""Longest identifier (clip, query), in bytes of UTF-8."""
MAX_URI_CHARS = 4_096
MAX_ENGINE_CHARS = 256
MAX_USER_KEY_CHARS = 1_024
MAX_ATTRIBUTES = 256
MAX_NESTING = 64
"""Levels of lists and objects in the attributes; JSON writers have limits too, orjson's is 254."""


class Reason(StrEnum):
    """Why a record was dead-lettered: the value of the ``dlq.reason`` header.

    The first block is about the event, the second about the clip that it names, the last about our own errors.
    """

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    WRONG_TYPE = "wrong_type"
    LIMIT_EXCEEDED = "limit_exceeded"
    BLANK_QUERY = "blank_query"
    NON_FINITE_SCORE = "non_finite_score"
    DUPLICATE_CLIP_ID = "duplicate_clip_id"
    KEY_MISMATCH = "key_mismatch"
    FROM_THE_FUTURE = "from_the_future"

    URI_REFUSED = "uri_refused"
    NOT_FOUND = "not_found"
    FETCH_FAILED = "fetch_failed"
    CLIP_TOO_LARGE = "clip_too_large"
    NO_VIDEO = "no_video"
    DECODE_FAILED = "decode_failed"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_CRASHED = "decoder_crashed"

    ENCODE_FAILED = "encode_failed"
    UNREADABLE = "unreadable"
    INTERNAL = "internal"


class InvalidEvent(Exception):  # noqa: N818 - it names the event, not a fault of ours
    """A record that can never be processed; ``reason`` is its dead-letter code."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Status(StrEnum):
    """How one candidate was treated."""

    RERANKED = "reranked"
    NOT_EMBEDDED = "not_embedded"
    UNAVAILABLE = "unavailable"
    BELOW_DEPTH = "below_depth"


class Degraded(StrEnum):
    """Why a valid event was passed on in its initial order."""

    STORE_UNAVAILABLE = "store_unavailable"
    ENCODER_FAILED = "encoder_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"


Normalization = Literal["minmax", "zscore", "none"]
Missing = Literal["own", "impute"]
MatchKind = Literal["percentile", "probability"]
Pooling = Annotated[str, msgspec.Meta(pattern=r"^(max|softmax:(0\.[0-9]+|1))$")]

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES, description="At most 512 bytes of UTF-8")]
_TIME = (
    # No leap second, no year 0, and nothing that is before year 1 or after 9999 in UTC: no datetime holds those.
    "^(?!0000|0001-01-01.*[+]|9999-12-31.*-[0-9]{2}:[0-9]{2}$)"
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]"
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
TIME = re.compile(_TIME.removesuffix("$"))
"""What a time looks like, for ``fullmatch``; the schemas have it too, since to them ``date-time`` is only a note."""
_BLANK = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
"""All that is white space to Unicode, to Python or to ECMAScript, which differ in what ``\\s`` is."""

Time = Annotated[
    dt.datetime, msgspec.Meta(tz=True, description="RFC 3339, no leap second", extra_json_schema={"pattern": _TIME})
]
Count = Annotated[int, msgspec.Meta(ge=0)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, description="Milliseconds from the start of the clip")]


def check_id(name: str, value: str) -> None:
    """Raise :class:`InvalidEvent` if an identifier is empty or longer than 512 bytes."""
    if not value:
        raise InvalidEvent(Reason.LIMIT_EXCEEDED, f"{name} is empty")
    # The schema limits characters, but stores and Kafka keys limit bytes; a character takes at most 4.
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode()) > MAX_ID_BYTES:
        raise InvalidEvent(Reason.LIMIT_EXCEEDED, f"{name} is longer than {MAX_ID_BYTES} bytes")


def _check_nesting(name: str, value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    if any(isinstance(each, dict | list) for each in level):
        raise InvalidEvent(Reason.LIMIT_EXCEEDED, f"{name} nest deeper than {MAX_NESTING} levels")


def _to_utc(event: msgspec.Struct, name: str) -> None:
    # Outputs are in UTC and stores count from 1970; an offset can move the first and the last day out of range.
    moment: dt.datetime = getattr(event, name)
    try:
        msgspec.structs.force_setattr(event, name, moment.astimezone(dt.UTC))
    except OverflowError:
        raise InvalidEvent(Reason.LIMIT_EXCEEDED, f"{name} is out of range: {moment.isoformat()}") from None


class ClipUploaded(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``clips.uploaded``, key clip_id: a new or replaced clip. A null value deletes the clip."""

    clip_id: Id
    uri: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URI_CHARS)]
    uploaded_at: Time
    attributes: Annotated[
        dict[str, Any], msgspec.Meta(max_length=MAX_ATTRIBUTES, description=f"At most {MAX_NESTING} levels deep")
    ] = {}

    def __post_init__(self) -> None:
        check_id("clip_id", self.clip_id)
        _check_nesting("attributes", self.attributes)
        _to_utc(self, "uploaded_at")


class ClipEmbedded(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``clips.embedded``, key clip_id: the clip's frames are searchable."""

    clip_id: Id
    model_id: str
    frames: Annotated[int, msgspec.Meta(ge=1)]
    duration_ms: Count
    uploaded_at: Time
    embedded_at: Time
    partial: Annotated[
        bool, msgspec.Meta(description="Part of the file is damaged; only the decodable part was embedded")
    ] = False


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One clip of an engine's result list; a higher score is better."""

    clip_id: Id
    score: float


class QueryResults(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``query.results``, key query_id: the engine's results, best candidate first."""

    query_id: Id
    query: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_QUERY_CHARS, pattern=f"[^{_BLANK}]")]
    engine: Annotated[str, msgspec.Meta(max_length=MAX_ENGINE_CHARS)]
    issued_at: Time
    results: Annotated[list[Candidate], msgspec.Meta(max_length=MAX_RESULTS)]
    user_key: Annotated[str, msgspec.Meta(max_length=MAX_USER_KEY_CHARS)] | None = None

    def __post_init__(self) -> None:
        check_id("query_id", self.query_id)
        _to_utc(self, "issued_at")
        ids = [candidate.clip_id for candidate in self.results]
        if max(map(len, ids), default=0) * 4 > MAX_ID_BYTES:
            for position, clip_id in enumerate(ids):
                check_id(f"results[{position}].clip_id", clip_id)
        if len(set(ids)) != len(ids):
            twice = next(clip_id for clip_id, count in Counter(ids).items() if count > 1)
            raise InvalidEvent(Reason.DUPLICATE_CLIP_ID, f"clip_id {twice!r} occurs more than once in results")


class RerankedCandidate(msgspec.Struct, frozen=True, gc=False):
    """One candidate after reranking.

    ``score`` is null below the depth and in degraded events; ``frame_score`` is the pooled cosine of
    the frames, not normalized, and ``moment_ms`` the best frame's time, both null if no frame was scored.
    """

    clip_id: Id
    rank: Annotated[int, msgspec.Meta(ge=1)]
    score: float | None
    initial_rank: Annotated[int, msgspec.Meta(ge=1)]
    initial_score: float
    frame_score: float | None
    moment_ms: Milliseconds | None
    status: Status


class QueryReranked(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``query.reranked``, key query_id: a permutation of the input's results.

    Events that do not state ``missing`` and ``pooling`` were written before there was a choice. ``match``,
    ``match_kind`` and ``match_bank`` are there together or not at all (:mod:`streamer.match`).
    """

    query_id: Id
    query: str
    engine: str
    issued_at: Time
    reranked_at: Time
    model_id: str
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)]
    depth: Annotated[int, msgspec.Meta(ge=1)]
    normalization: Normalization
    missing: Missing = "own"
    pooling: Pooling = "max"
    match: Annotated[float, msgspec.Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    match_kind: MatchKind | msgspec.UnsetType = msgspec.UNSET
    match_bank: str | msgspec.UnsetType = msgspec.UNSET
    degraded: Degraded | None
    results: Annotated[list[RerankedCandidate], msgspec.Meta(max_length=MAX_RESULTS)]


Event = ClipUploaded | ClipEmbedded | QueryResults | QueryReranked

TOPICS: dict[str, type[Event]] = {
    "clips.uploaded": ClipUploaded,
    "clips.embedded": ClipEmbedded,
    "query.results": QueryResults,
    "query.reranked": QueryReranked,
}
"""The event type of each topic, by the topic's name without prefix."""


TIME_FIELDS: dict[type[Event], tuple[str, ...]] = {
    model: tuple(name for name, kind in model.__annotations__.items() if kind == "Time") for model in TOPICS.values()
}
"""The names of each event's times."""


def now() -> dt.datetime:
    """Return the current time in UTC with millisecond precision, as in events."""
    moment = dt.datetime.now(dt.UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def json_schema(topic: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a topic's event, with its definitions inside."""
    model = TOPICS[topic]
    _, definitions = msgspec.json.schema_components([model], ref_template="#/$defs/{name}")
    root = definitions.pop(model.__name__)
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": model.__name__,
        "x-topic": topic,
        **root,
    }
    if definitions:
        schema["$defs"] = definitions
    return schema
