"""What is explained, as it was found: the answer, its query, the candidates' addresses, and uploads.

These come from the topics, newest records first, or from recorded files. All of it is from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from streamer.evaluation.files import DAMAGED, opened
from streamer.events import MAX_EVENT_BYTES, MAX_RESULTS, MAX_URI_CHARS, Candidate, Id, InvalidEvent, Time, check_id

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class ExplainError(Exception):
    """There is nothing to explain, or a file does not hold what it should; the message is one line."""


class Upload(NamedTuple):
    """The newest upload of a clip; ``uri`` is None where that was a delete, and the time where a file has none."""

    uri: str | None
    uploaded_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Given:
    """Candidates that a user gives, best first, with the addresses of those that state one.

    ``has_scores`` is False where there is no engine's score at all; every score is 0 then.
    """

    candidates: list[Candidate]
    uris: dict[str, str]
    has_scores: bool


@dataclass(slots=True)
class Known:
    """What the topics, or files, say of clips: ``uploads`` and ``embedded`` (at which time) by clip id.

    ``searched``: what was read for uploads, in words.
    """

    uploads: dict[str, Upload] = field(default_factory=dict)
    embedded: dict[str, dt.datetime] = field(default_factory=dict)
    searched: str = ""


_Uri = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URI_CHARS)]


class _Line(msgspec.Struct, frozen=True):
    clip_id: Id
    score: float | None = None
    uri: _Uri | None = None


class _Document(msgspec.Struct, frozen=True):
    """A ``query.results`` event, or the part of one that states the candidates."""

    results: Annotated[list[_Line], msgspec.Meta(max_length=MAX_RESULTS)]


class _UploadLine(msgspec.Struct, frozen=True):
    """A line of a file of uploads: a ``clips.uploaded`` event; a null ``uri`` deletes the clip."""

    clip_id: Id
    uri: _Uri | None
    uploaded_at: Time | None = None


def uris_of(value: bytes | None) -> dict[str, str]:
    """Return the addresses that candidates of a ``query.results`` event state themselves; a field of later releases.

    An event whose addresses are not valid states none: it was valid without them.
    """
    try:
        document = msgspec.json.decode(value or b"", type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {each.clip_id: each.uri for each in document.results if each.uri is not None}


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Go through the lines of a file, each with its place for messages. Raises :class:`ExplainError`."""
    try:
        with opened(path) as file:
            number = 0
            while line := file.readline(MAX_EVENT_BYTES + 2):
                number += 1
                if line.strip():
                    yield f"{path}:{number}", line.rstrip(b"\r\n")
    except DAMAGED as error:
        raise ExplainError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise ExplainError(f"{path}: {error.strerror or error}") from error


def candidates_of_file(path: Path) -> Given:
    """Read candidates: one ``query.results`` event, or an object with ``results`` alone, or one candidate per line.

    A candidate has its ``clip_id``, and optionally the engine's ``score`` and a ``uri``. Raises :class:`ExplainError`.
    """
    lines, size = [], 0
    for place, line in lines_of(path):
        size += len(line)
        if size > MAX_EVENT_BYTES:
            raise ExplainError(f"{place}: more than {MAX_EVENT_BYTES:,} bytes of candidates")
        lines.append((place, line))
    try:
        document = msgspec.json.decode(b"\n".join(line for _, line in lines), type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b'"results"' in (lines[0][1] if lines else b""):
            raise ExplainError(f"{path}: expected an event of query.results, found {error}") from None
        return _checked(str(path), [_candidate(place, line) for place, line in lines])
    return _checked(str(path), document.results)


def candidates_of_ids(clip_ids: Sequence[str]) -> Given:
    """Take candidates by their ids alone, which have no engine's score. Raises :class:`ExplainError`."""
    return _checked("--clip", [_Line(clip_id) for clip_id in clip_ids])


def _candidate(place: str, line: bytes) -> _Line:
    try:
        return msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExplainError(f"{place}: expected a candidate (clip_id, score, uri), found {error}") from None


def _checked(place: str, lines: Sequence[_Line]) -> Given:
    if not lines:
        raise ExplainError(f"{place}: there are no candidates")
    if len(lines) > MAX_RESULTS:
        raise ExplainError(f"{place}: more than {MAX_RESULTS:,} candidates")
    seen: set[str] = set()
    for line in lines:
        try:
            check_id("clip_id", line.clip_id)
        except (InvalidEvent, UnicodeEncodeError) as error:
            raise ExplainError(f"{place}: {error}") from None
        if line.clip_id in seen:
            raise ExplainError(f"{place}: clip_id {line.clip_id!r} occurs more than once")
        if line.score is not None and not math.isfinite(line.score):
            raise ExplainError(f"{place}: the score of {line.clip_id!r} is not finite")
        seen.add(line.clip_id)
    scored = sum(line.score is not None for line in lines)
    if scored not in {0, len(lines)}:
        raise ExplainError(f"{place}: {scored} of {len(lines)} candidates have a score; give all of them one, or none")
    candidates = [Candidate(clip_id=line.clip_id, score=line.score or 0.0) for line in lines]
    uris = {line.clip_id: line.uri for line in lines if line.uri is not None}
    return Given(candidates, uris, has_scores=scored > 0)


def uploads_of_file(path: Path, wanted: Sequence[str]) -> dict[str, Upload]:
    """Read recorded ``clips.uploaded`` events, one per line; the last one of a clip counts.

    Raises :class:`ExplainError`.
    """
    decoder = msgspec.json.Decoder(_UploadLine)
    among = frozenset(wanted)
    found: dict[str, Upload] = {}
    for place, raw in lines_of(path):
        try:
            line = decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ExplainError(f"{place}: expected a clips.uploaded event, found {error}") from None
        if line.clip_id in among:
            found[line.clip_id] = Upload(line.uri, line.uploaded_at)
    return found
