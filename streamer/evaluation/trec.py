"""Reads (with limits) and writes TREC files: runs, TRECVID AVS judgments (qrels) and topics.

    run     topic Q0 shot rank score tag    the rank is not used: the score alone decides (:meth:`Ranking.order`)
    qrels   topic 0 shot stratum rel        rel > 0 relevant, 0 not relevant, < 0 in the pool but not judged
    topics  topic<TAB>text of the query     or NIST's XML: elements with a num, each with a textDescription in it

Fields are separated by blanks or tabs, in UTF-8; empty lines are skipped; a file may be gzipped. Invalid content raises
a :class:`TrecError`, one line with the file, the line, what was expected and what was found.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import zlib
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, NoReturn, cast
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt

from streamer.events import MAX_ID_BYTES, MAX_QUERY_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

MAX_ROWS = 5_000_000
"""Most lines of a file: 1,000 topics with as many candidates as an event may have."""
MAX_LINE_BYTES = 16_384
MAX_XML_BYTES = 16_777_216

_MAX_REL = 1_000_000
_SHOWN_BYTES = 80
"""The length to which an error message cuts found text."""
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t-\r\0]")


class TrecError(Exception):
    """An invalid file; the message is one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The results of one topic, in the file's order: distinct ``shots`` (n) and their finite ``scores`` (n,)."""

    shots: tuple[str, ...]
    scores: FloatArray

    def order(self) -> IntArray:
        """Return the positions of the results, best first: by score, ties by shot id, both descending.

        Scores compare as float64 and ids by their UTF-8 bytes, as in NIST's programs; Python compares str by code
        point, which is the same order.
        """
        by_id = np.array(sorted(range(len(self.shots)), key=self.shots.__getitem__, reverse=True), np.intp)
        return by_id[np.argsort(-self.scores[by_id], kind="stable")]

    def ranked(self) -> Ranking:
        """Return the same results, best first."""
        order = self.order()
        return Ranking(tuple(self.shots[each] for each in order.tolist()), self.scores[order])


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """An engine's results: a :class:`Ranking` for each topic, in the file's order."""

    topics: Mapping[str, Ranking]
    tag: str = "run"


@dataclass(frozen=True, slots=True, eq=False)
class Judgments:
    """The pool of one topic: distinct ``shots`` (n), their strata and their judgments.

    ``strata`` (n,): positions in ``stratum_names``. ``rels`` (n,): > 0 relevant, 0 not relevant, < 0 not judged.
    """

    shots: tuple[str, ...]
    strata: IntArray
    stratum_names: tuple[str, ...]
    rels: npt.NDArray[np.int32]

    @classmethod
    def of(cls, shots: Sequence[str], strata: Sequence[str], rels: Iterable[float]) -> Judgments:
        """Build the judgments from the columns of their file."""
        names = sorted(set(strata))
        position = {name: number for number, name in enumerate(names)}
        codes = np.fromiter((position[stratum] for stratum in strata), np.intp, len(strata))
        return cls(tuple(shots), codes, tuple(names), np.fromiter(rels, np.int32, len(shots)))


@dataclass(frozen=True, slots=True, eq=False)
class Qrels:
    """The judged pools of all topics, in the file's order."""

    topics: Mapping[str, Judgments]


def read_run(path: Path) -> Run:
    """Read a run of six columns."""
    rows: defaultdict[str, _Rows] = defaultdict(_Rows)
    names, tag = _Names(path), ""
    for line, (topic, _q0, shot, _rank, score, last) in _rows(path, ("topic", "Q0", "shot", "rank", "score", "tag")):
        tag = tag or names.of(line, last)
        rows[names.of(line, topic)].add(line, names.of(line, shot), _score(path, line, score))
    _refuse_repeats(path, rows)
    return Run({topic: Ranking(tuple(each.shots), np.array(each.values)) for topic, each in rows.items()}, tag)


def read_qrels(path: Path) -> Qrels:
    """Read AVS judgments of five columns."""
    rows: defaultdict[str, _Rows] = defaultdict(_Rows)
    names = _Names(path)
    for line, (topic, _dummy, shot, stratum, rel) in _rows(path, ("topic", "0", "shot", "stratum", "rel")):
        each = rows[names.of(line, topic)]
        each.add(line, names.of(line, shot), _rel(path, line, rel))
        each.strata.append(names.of(line, stratum))
    _refuse_repeats(path, rows)
    return Qrels({topic: Judgments.of(each.shots, each.strata, each.values) for topic, each in rows.items()})


def read_topics(path: Path) -> dict[str, str]:
    """Read the query text of each topic."""
    with _reading(path) as file:
        start = file.read(MAX_LINE_BYTES).removeprefix(_BOM).lstrip()
    if start.startswith(b"<"):
        return _xml_topics(path)
    topics: dict[str, str] = {}
    names = _Names(path)
    for line, (number, text) in _rows(path, ("topic", "text of the query"), last_is_text=True):
        topic = names.of(line, number)
        if topic in topics:
            _refuse(path, line, "each topic once", f"topic {topic} again")
        topics[topic] = _query(path, line, _decoded(path, line, text))
    return topics


def write_run(path: Path, run: Run) -> None:
    """Write a run, the results of each topic ranked best first; scores are read back exactly.

    Raises :class:`TrecError` for a name with white space, which the format cannot represent.
    """
    _write(
        path,
        (
            f"{_word(path, topic)} Q0 {_word(path, shot)} {rank} {score!r} {_word(path, run.tag)}\n"
            for topic, ranking in run.topics.items()
            for best in (ranking.ranked(),)
            for rank, (shot, score) in enumerate(zip(best.shots, best.scores.tolist(), strict=True), start=1)
        ),
    )


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write AVS judgments."""
    _write(
        path,
        (
            f"{_word(path, topic)} 0 {_word(path, shot)} {_word(path, each.stratum_names[stratum])} {rel}\n"
            for topic, each in qrels.topics.items()
            for shot, stratum, rel in zip(each.shots, each.strata.tolist(), each.rels.tolist(), strict=True)
        ),
    )


def write_topics(path: Path, topics: Mapping[str, str]) -> None:
    """Write topics, one per line; white space inside a text becomes single blanks."""
    _write(path, (f"{_word(path, topic)}\t{' '.join(text.split())}\n" for topic, text in topics.items()))


@dataclass(slots=True)
class _Rows:
    """One topic while its file is read: shots, scores or rels, strata, and their line numbers."""

    shots: list[str] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))
    strata: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: int, shot: str, value: float) -> None:
        self.shots.append(shot)
        self.values.append(value)
        self.lines.append(line)


class _Names:
    """The identifiers of one file, each checked and decoded once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[bytes, str] = {}

    def of(self, line: int, raw: bytes) -> str:
        name = self._known.get(raw)
        if name is None:
            if len(raw) > MAX_ID_BYTES:
                _refuse(self._path, line, f"an id of at most {MAX_ID_BYTES} bytes", raw)
            name = self._known[raw] = _decoded(self._path, line, raw)
            if "\0" in name:
                _refuse(self._path, line, "text", raw)
        return name


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if zipped else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TrecError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise TrecError(f"{path}: {error.strerror or error}") from error


def _rows(path: Path, columns: Sequence[str], *, last_is_text: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number and fields of each non-empty line; with ``last_is_text`` the last field takes the rest."""
    most_splits = len(columns) - 1 if last_is_text else -1
    number, empty = 0, True
    with _reading(path) as file:
        while text := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number > MAX_ROWS:
                _refuse(path, number, f"at most {MAX_ROWS:,} lines", "more")
            if len(text) > MAX_LINE_BYTES:
                _refuse(path, number, f"a line of at most {MAX_LINE_BYTES:,} bytes", "a longer one")
            if number == 1:
                text = text.removeprefix(_BOM)
            fields = text.split(None, most_splits)
            if len(fields) == len(columns):
                empty = False
                yield number, fields
            elif fields:
                expected = f"{len(columns)} columns ({' '.join(columns)})"
                _refuse(path, number, expected, f"{len(fields)}: {_shown(text.strip())}")
    if empty:
        raise TrecError(f"{path}: expected lines of {' '.join(columns)}, found an empty file")


def _score(path: Path, line: int, raw: bytes) -> float:
    try:
        score = float(raw)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or b"_" in raw:
        _refuse(path, line, "a finite number as the score", raw)
    return score


def _rel(path: Path, line: int, raw: bytes) -> int:
    try:
        rel = int(raw)
    except ValueError:
        rel = _MAX_REL + 1
    if abs(rel) > _MAX_REL or b"_" in raw:
        _refuse(path, line, "a whole number as the relevance", raw)
    return rel


def _refuse_repeats(path: Path, topics: Mapping[str, _Rows]) -> None:
    for topic, rows in topics.items():
        if len(set(rows.shots)) == len(rows.shots):
            continue
        lines: dict[str, int] = {}
        for shot, line in zip(rows.shots, rows.lines, strict=True):
            if shot in lines:
                _refuse(path, line, f"each shot once in topic {topic}", f"{shot} again, after line {lines[shot]}")
            lines[shot] = line


def _xml_topics(path: Path) -> dict[str, str]:
    """Read the XML in which NIST publishes topics; entities are refused, because they can expand without bound."""
    with _reading(path) as file:
        raw = file.read(MAX_XML_BYTES + 1)
    if len(raw) > MAX_XML_BYTES:
        raise TrecError(f"{path}: expected at most {MAX_XML_BYTES:,} bytes of XML, found more")
    text = _decoded(path, 1, raw.removeprefix(_BOM))
    if "<!ENTITY" in text:
        raise TrecError(f"{path}: expected topics, found an entity declaration")
    try:
        root = ET.fromstring(text.partition("?>")[2] if text.lstrip().startswith("<?xml") else text)  # noqa: S314
    except ET.ParseError as error:
        _refuse(path, error.position[0], "XML", str(error))
    topics: dict[str, str] = {}
    for element in root.iter():
        number, description = element.get("num"), element.find("textDescription")
        if number is None or description is None:
            continue
        if number in topics:
            raise TrecError(f"{path}: expected each topic once, found topic {number} again")
        topics[number] = _query(path, None, description.get("text") or description.text or "")
    if not topics:
        raise TrecError(f"{path}: expected elements with a num and a textDescription in them, found none")
    return topics


def _query(path: Path, line: int | None, text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > MAX_QUERY_CHARS:
        _refuse(path, line, f"a query of 1 to {MAX_QUERY_CHARS:,} characters", f"{len(text):,}")
    return text


def _decoded(path: Path, line: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        _refuse(path, line, "UTF-8", raw[max(0, error.start - 20) :])


def _shown(found: bytes) -> str:
    return repr(found[:_SHOWN_BYTES])[1:] + ("..." if len(found) > _SHOWN_BYTES else "")


def _refuse(path: Path, line: int | None, expected: str, found: bytes | str) -> NoReturn:
    where = str(path) if line is None else f"{path}:{line}"
    raise TrecError(
        f"{where}: expected {expected}, found {found if isinstance(found, str) else _shown(found)}"
    ) from None


def _word(path: Path, name: str) -> str:
    if not name or _BLANK.search(name):
        raise TrecError(f"{path}: expected a name without white space to write, found {name!r}")
    return name


def _write(path: Path, lines: Iterable[str]) -> None:
    try:
        with gzip.GzipFile(path, "wb", mtime=0) if path.suffix == ".gz" else path.open("wb") as file:
            file.writelines(line.encode() for line in lines)
    except OSError as error:
        raise TrecError(f"{path}: {error.strerror or error}") from error
