"""Reads the ground truth of text-to-video benchmarks (MSR-VTT, DiDeMo, VATEX): which video each query is about.

    CSV     a header with a column of videos, and, where they are there, of queries' ids and captions; MSR-VTT 1k-A's
    JSON    a list of objects with such fields, of which a caption may be a list; or that list as "sentences" of an
            object (MSR-VTT); or a list of the videos of queries 0, 1, 2 ...; or an object with each query's video, its
            list of videos, or its object of videos and relevances
    .npy    (q,) the video of each query, by name or position; (q, v) ones where a video is a query's, else zeros;
            or (n, 2) names, of a query and its video

Queries without ids are numbered from 0 in the file's order, and so are the videos of an array of numbers. Arrays of
Python objects are refused, since reading them would run code of the file. Invalid content raises
:class:`~streamer.evaluation.trec_rows.TrecError`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeAlias

import msgspec
import numpy as np

from streamer.evaluation.trec_rows import MAX_ROWS, TrecError, decoded, limited_lines, refuse
from streamer.events import MAX_ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MAX_JSON_BYTES = 67_108_864
MAX_ARRAY_BYTES = 268_435_456
MAX_REL = 1_000_000

_VIDEO = ("video_id", "videoid", "video")
_QUERY = ("query_id", "key", "caption_id", "sen_id", "id")
_CAPTION = ("sentence", "caption", "description", "encap", "desc", "text", "query")
"""The names of columns and fields, in lower case; the first that is there counts."""
_NPY = b"\x93NUMPY"
_JSON = re.compile(rb'\s*(\{\s*"|\[\s*[{"]|\[\s*[0-9]+\s*,)')
_HEADER = re.compile(r'[\w"-]+(,[\w"-]+)+')
_PEEKED = 4_096
_PAIR = 2
_SHOWN = 80
"""The length to which an error message cuts found text."""


Reader: TypeAlias = "Callable[[Path, IO[bytes], bool], Truth]"
"""Reads the file at a path, open; a true third argument makes one query of all captions of a video."""


@dataclass(slots=True)
class Truth:
    """``videos[query][video]``: how relevant each video is. ``captions[query]``: the query's text, if it has one.

    ``gallery``: number of videos.
    """

    videos: dict[str, dict[str, int]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    gallery: int = 0


def reader_of(path: Path, file: IO[bytes], *, topics: bool = False) -> Reader | None:
    """Return what reads a file, by its first bytes or its suffix, without reading it; None if it is no ground truth.

    ``topics``: the file may also be one of topics.
    """
    start: bytes = file.peek(_PEEKED)  # type: ignore[attr-defined]
    suffix = next((each for each in reversed(path.suffixes) if each != ".gz"), "").lower()
    if start.startswith(_NPY) or suffix == ".npy":
        return _read_array
    first = start.partition(b"\n")[0]
    if topics and first.lstrip().startswith(b"{") and b'"_id"' in first:
        # BEIR's queries, one object a line.
        return None
    if _JSON.match(start) or suffix == ".json":
        return _read_json
    header = first.decode(errors="replace").strip()
    if suffix == ".csv" or (_HEADER.fullmatch(header) and _column(_names(header.split(",")), _VIDEO) is not None):
        return _read_csv
    return None


class _Building:
    """The queries of a file as it is read; with ``is_paragraph``, one for all captions of a video."""

    def __init__(self, path: Path, *, is_paragraph: bool = False) -> None:
        self.found = Truth()
        self._path = path
        self._is_paragraph = is_paragraph
        self._numbered = 0
        self._names: set[str] = set()
        self._gallery: set[str] = set()

    def add(self, where: int | str, query: object, video: object, captions: object) -> None:
        """Add what one row says: the id of its query, its video, and its caption or captions; None where it has none.

        ``where``: a line's number, or words.
        """
        name = self._video(where, video)
        texts = captions if isinstance(captions, list) else [captions]
        for number, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                self._refuse(where, "a caption, or a list of captions", text)
            if self._is_paragraph:
                of = name
            elif query is None:
                of, self._numbered = str(self._numbered), self._numbered + 1
            else:
                of = self._name(where, query, "a query's id") + (f"#{number}" if isinstance(captions, list) else "")
            self._add(where, of, name, text)

    def judge(self, where: int | str, query: str, video: object, rel: object = 1) -> None:
        """Add a query's video with its relevance."""
        if isinstance(rel, bool) or not isinstance(rel, int) or abs(rel) > MAX_REL:
            self._refuse(where, "a whole number as the relevance", rel)
        videos = self.found.videos.setdefault(self._name(where, query, "a query's id"), {})
        name = self._video(where, video)
        if name in videos:
            self._refuse(where, "each pair of a query and a video once", f"{query} and {name} again")
        videos[name] = rel
        self._limit()

    def done(self, gallery: int | None = None) -> Truth:
        """Return all queries, each of which must have a video."""
        if not self.found.videos:
            raise TrecError(f"{self._path}: expected queries and their videos, found none")
        for query, videos in self.found.videos.items():
            if not any(rel > 0 for rel in videos.values()):
                raise TrecError(f"{self._path}: expected a relevant video for each query, found none for {query}")
        self.found.gallery = gallery or len(self._gallery)
        return self.found

    def _add(self, where: int | str, query: str, video: str, text: str | None) -> None:
        videos = self.found.videos.setdefault(query, {})
        if video in videos and not self._is_paragraph:
            self._refuse(where, "each pair of a query and a video once", f"{query} and {video} again")
        videos[video] = 1
        if text is not None:
            before = self.found.captions.get(query)
            # A query with several videos has its caption in each of their rows.
            self.found.captions[query] = f"{before} {text}" if self._is_paragraph and before else text
        self._limit()

    def _limit(self) -> None:
        if len(self.found.videos) > MAX_ROWS:
            raise TrecError(f"{self._path}: expected at most {MAX_ROWS:,} queries, found more")

    def _video(self, where: int | str, video: object) -> str:
        name = self._name(where, video, "a video")
        self._gallery.add(name)
        return name

    def _name(self, where: int | str, value: object, what: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            self._refuse(where, what, value)
        name = str(value).strip()
        if name in self._names:
            return name
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            size = 0
        if not 0 < size <= MAX_ID_BYTES or "\0" in name:
            self._refuse(where, f"{what} of 1 to {MAX_ID_BYTES} bytes of text", name)
        self._names.add(name)
        return name

    def _refuse(self, where: int | str, expected: str, found: object) -> NoReturn:
        shown = found if isinstance(found, str) else repr(found)
        shown = ascii(shown)[1:-1] if not shown.isprintable() else shown
        shown = shown[:_SHOWN] + ("..." if len(shown) > _SHOWN else "")
        if isinstance(where, int):
            refuse(self._path, where, expected, shown)
        refuse(self._path, None, f"{expected} in {where}", shown)


def _names(header: list[str]) -> list[str]:
    return [name.strip().strip('"').lower() for name in header]


def _column(names: list[str], wanted: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _read_csv(path: Path, file: IO[bytes], is_paragraph: bool) -> Truth:
    building = _Building(path, is_paragraph=is_paragraph)
    rows = csv.reader((decoded(path, *line) for line in limited_lines(path, file)), strict=True)
    try:
        names = _names(next(rows, []))
        video, query, caption = (_column(names, wanted) for wanted in (_VIDEO, _QUERY, _CAPTION))
        if video is None:
            refuse(path, 1, f"a header with a column {' or '.join(_VIDEO)}", ",".join(names) or "none")
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                refuse(path, rows.line_num, f"{len(names)} columns, as the header has", str(len(row)))
            building.add(
                rows.line_num,
                None if query is None else row[query],
                row[video],
                None if caption is None else row[caption],
            )
    except csv.Error as error:
        refuse(path, rows.line_num, "CSV", str(error))
    return building.done()


def _read_json(path: Path, file: IO[bytes], is_paragraph: bool) -> Truth:
    raw = _limited(path, file, MAX_JSON_BYTES)
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        refuse(path, None, "JSON", str(error))
    building = _Building(path, is_paragraph=is_paragraph)
    if isinstance(found, dict) and isinstance(found.get("sentences"), list):
        found = found["sentences"]
    if isinstance(found, list):
        for number, item in enumerate(found):
            where = f"item {number}"
            if isinstance(item, dict):
                _add_object(building, where, item)
            else:
                building.judge(where, str(number), item)
    elif isinstance(found, dict):
        for query, videos in found.items():
            if isinstance(videos, dict):
                pairs = list(videos.items())
            else:
                pairs = [(video, 1) for video in (videos if isinstance(videos, list) else [videos])]
            for video, rel in pairs:
                building.judge(f"query {query}", query, video, rel)
            building.found.videos.setdefault(query, {})
    else:
        refuse(path, None, "a list or an object", type(found).__name__)
    return building.done()


def _add_object(building: _Building, where: str, item: Mapping[str, Any]) -> None:
    fields = {name.lower(): value for name, value in item.items()}
    query, video, caption = (
        next((fields[name] for name in wanted if name in fields), None) for wanted in (_QUERY, _VIDEO, _CAPTION)
    )
    building.add(where, query, video, caption)


def _read_array(path: Path, file: IO[bytes], is_paragraph: bool) -> Truth:  # noqa: ARG001 - as the other readers
    array = _array(path, _limited(path, file, MAX_ARRAY_BYTES))
    building = _Building(path)
    if array.dtype.kind in "SU":
        for number, row in enumerate(array.tolist()):
            pair = row if isinstance(row, list) else [str(number), row]
            query, video = (decoded(path, number, each) if isinstance(each, bytes) else each for each in pair)
            building.judge(f"row {number}", query, video)
        return building.done()
    if array.ndim == 1:
        if array.dtype.kind == "b" or array.min() < 0:
            refuse(path, None, "a position from 0 for each query's video", str(array.min()))
        for number, video in enumerate(array.tolist()):
            building.judge(f"row {number}", str(number), video)
        return building.done()
    if not np.isin(array, (0, 1)).all():
        refuse(path, None, "ones and zeros for queries (rows) and videos (columns)", "other values")
    for query in range(len(array)):
        building.found.videos[str(query)] = dict.fromkeys(map(str, np.flatnonzero(array[query]).tolist()), 1)
    return building.done(array.shape[1])


def _array(path: Path, raw: bytes) -> np.ndarray[Any, Any]:
    """Return the array of an .npy file, whose header is checked before any memory is given to it."""
    stream = io.BytesIO(raw)
    reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        if version not in reads:
            refuse(path, None, "version 1.0 or 2.0 of the format .npy", f"{version[0]}.{version[1]}")
        shape, _is_fortran, dtype = reads[version](stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        refuse(path, None, "an array of NumPy (.npy)", " ".join(str(error).split()) or type(error).__name__)
    if dtype.kind not in "biuSU":
        refuse(path, None, "an array of integers, booleans or text", f"one of {dtype}")
    if len(shape) not in (1, _PAIR) or 0 in shape or (dtype.kind in "SU" and shape[1:] not in ((), (_PAIR,))):
        expected = "(n,) or (n, 2) names" if dtype.kind in "SU" else "(q,) or (q, v) numbers"
        refuse(path, None, expected, f"the shape {shape}")
    if shape[0] > MAX_ROWS:
        refuse(path, None, f"at most {MAX_ROWS:,} rows", f"{shape[0]:,}")
    size, there = math.prod(shape) * dtype.itemsize, len(raw) - stream.tell()
    if size != there:
        refuse(path, None, f"{size:,} bytes for the shape {shape} of {dtype}", f"{there:,}")
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(raw), allow_pickle=False)
    return found


def _limited(path: Path, file: IO[bytes], most: int) -> bytes:
    raw = file.read(most + 1)
    if len(raw) > most:
        raise TrecError(f"{path}: expected at most {most:,} bytes, found more")
    return raw
