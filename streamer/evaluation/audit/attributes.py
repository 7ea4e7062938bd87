"""Reads clips' attributes: from the topic ``clips.uploaded``, or from a file in JSON Lines or CSV."""

from __future__ import annotations

import contextlib
import csv
import io
from typing import IO, TYPE_CHECKING, Any

import msgspec
import structlog

from streamer.codec import JSON
from streamer.evaluation.audit.groups import MAX_CLIPS, Catalogue
from streamer.evaluation.files import DAMAGED, opened
from streamer.evaluation.questions import ReplayError
from streamer.events import MAX_EVENT_BYTES, ClipUploaded, Id, InvalidEvent, Time
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.topology import AUDIT, CLIPS_UPLOADED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from streamer.codec import Codec
    from streamer.kafka import Record
    from streamer.settings import Connection

log = structlog.get_logger()

CLIP_ID = "clip_id"
_PEEKED = 4_096


class _Line(msgspec.Struct, frozen=True):
    """One line of a file: a ``clips.uploaded`` event, or a part of one; null attributes delete the clip."""

    clip_id: Id
    attributes: dict[str, Any] | None = {}
    uploaded_at: Time | None = None


def of_topic(settings: Connection, wanted: Iterable[str] = (), codec: Codec = JSON) -> Catalogue:
    """Read the uploads and deletes that are in the topic now; invalid uploads are skipped with a warning.

    Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`.
    """
    found = Catalogue(wanted)
    with contextlib.closing(TopicReader(settings, settings.topic(CLIPS_UPLOADED), AUDIT)) as reader:
        for span in reader.spans():
            for record in reader.records(span):
                take(found, record, codec)
    return found


def take(catalogue: Catalogue, record: Record, codec: Codec = JSON) -> None:
    """Add an upload, or remove a deleted clip; an invalid upload is skipped with a warning.

    Raises :class:`ReplayError` if there are too many clips.
    """
    if not record.value:
        catalogue.delete((record.key or b"").decode(errors="replace"))
        return
    try:
        event = codec.decode(ClipUploaded, record.value, record.key)
    except InvalidEvent as error:
        log.warning("invalid event skipped", place=record.place, error=str(error))
        return
    catalogue.put(event.clip_id, event.attributes, event.uploaded_at)
    _check_count(catalogue, record.place)


def of_file(path: Path, wanted: Iterable[str] = ()) -> Catalogue:
    """Read a file: one JSON object per line, or CSV with a header that has ``clip_id``.

    A JSON line is a ``clips.uploaded`` event or has its ``clip_id`` and ``attributes`` alone; null attributes delete
    the clip. Raises :class:`ReplayError` with the line's number.
    """
    found = Catalogue(wanted)
    try:
        with opened(path) as file:
            if file.peek(_PEEKED)[:_PEEKED].lstrip()[:1] == b"{":
                _json_lines(path, file, found)
            else:
                _csv(path, file, found)
    except DAMAGED as error:
        raise ReplayError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise ReplayError(f"{path}: {error.strerror or error}") from error
    return found


def _json_lines(path: Path, file: IO[bytes], found: Catalogue) -> None:
    decoder = msgspec.json.Decoder(_Line)
    number = 0
    while raw := file.readline(MAX_EVENT_BYTES + 2):
        number += 1
        if not raw.strip():
            continue
        try:
            line = decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            expected = f"{path}:{number}: expected a clip ({CLIP_ID}, attributes)"
            raise ReplayError(f"{expected}, found {error}") from None
        if line.attributes is None:
            found.delete(line.clip_id)
        else:
            found.put(line.clip_id, line.attributes, line.uploaded_at)
            _check_count(found, f"{path}:{number}")


def _csv(path: Path, file: io.BufferedReader, found: Catalogue) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    reader = csv.reader(text, strict=True)
    try:
        names = next(reader, [])
        if names.count(CLIP_ID) != 1:
            raise ReplayError(f"{path}:1: expected JSON lines, or a header of CSV with the column {CLIP_ID}")
        for row in reader:
            if not row:
                continue
            clip_id = row[names.index(CLIP_ID)] if len(row) == len(names) else ""
            if not clip_id:
                raise ReplayError(
                    f"{path}:{reader.line_num}: expected {len(names)} columns and a {CLIP_ID}, found {len(row)} columns"
                )
            found.put(clip_id, {name: each for name, each in zip(names, row, strict=True) if name != CLIP_ID})
            _check_count(found, f"{path}:{reader.line_num}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReplayError(f"{path}:{reader.line_num}: expected CSV in UTF-8, found {error}") from None
    finally:
        text.detach()  # the file is not this reader's to close: it may be standard input


def _check_count(found: Catalogue, place: str) -> None:
    if len(found) > MAX_CLIPS:
        raise ReplayError(f"{place}: more than {MAX_CLIPS:,} clips")
