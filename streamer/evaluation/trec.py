"""Reads (with limits) and writes TREC files: runs, TRECVID AVS judgments (qrels) and topics.

    run     topic Q0 shot rank score tag    the rank is not used: the score alone decides (:meth:`Ranking.order`);
                                            or the XML that is submitted to TRECVID
    qrels   topic 0 shot stratum rel        rel > 0 relevant, 0 not relevant, < 0 in the pool but not judged;
                                            or without strata: topic 0 shot rel; or BEIR's query-id corpus-id score;
                                            or the ground truth of text-to-video benchmarks
    topics  topic<TAB>text of the query     or NIST's XML; or BEIR's queries.jsonl; or that ground truth's captions

Fields are separated by blanks or tabs, in UTF-8; empty lines and those that begin with # are skipped; a file may be
gzipped, a pipe, or standard input (``-``). Invalid content raises a :class:`TrecError`, one line with the file, the
line, what was expected and what was found.
"""

from __future__ import annotations

import itertools
import math
import re
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from streamer.evaluation import trec_xml, truth
from streamer.evaluation.trec_rows import Names, TrecError, decoded, lines, query, reading, refuse, rows, word, write

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

_MAX_REL = 1_000_000
_BEIR = [b"query-id", b"corpus-id", b"score"]
_WITH_TASK = re.compile(r"[0-9]([0-9]{3})")
"""A topic's number in NIST's judgments: the task's number stands before that of the topic files."""


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
    """The judged pools of all topics, in the file's order.

    ``gallery``: the number of videos that are ranked for each query, for the ground truth of a text-to-video benchmark
    (:mod:`streamer.evaluation.truth`); None for other judgments.
    """

    topics: Mapping[str, Judgments]
    gallery: int | None = None


def read_run(path: Path) -> Run:
    """Read a run of six columns, or TRECVID's XML."""
    topics: defaultdict[str, _Rows] = defaultdict(_Rows)
    with reading(path) as file:
        if _is_xml(file):
            found = trec_xml.read_run(path, file)
            return Run({topic: Ranking(*_columns(results)) for topic, results in found.items()}, path.stem)
        names, tag = Names(path), ""
        for line, (topic, _q0, shot, _rank, score, last) in rows(path, lines(path, file), _RUN):
            tag = tag or names.of(line, last)
            topics[names.of(line, topic)].add(line, names.of(line, shot), _score(path, line, score))
    _refuse_repeats(path, topics)
    return Run({topic: Ranking(tuple(each.shots), np.array(each.values)) for topic, each in topics.items()}, tag)


_RUN = ("topic", "Q0", "shot", "rank", "score", "tag")
_AVS_QRELS: tuple[str, ...] = ("topic", "0", "shot", "stratum", "rel")
_TREC_QRELS = ("topic", "0", "shot", "rel")
_ONE_STRATUM = "1"


def _columns(results: Sequence[tuple[str, float]]) -> tuple[tuple[str, ...], FloatArray]:
    return tuple(shot for shot, _ in results), np.array([score for _, score in results])


def read_qrels(path: Path, *, is_paragraph: bool = False) -> Qrels:
    """Read judgments: AVS's with strata; TREC's without; BEIR's (and MTEB's), which have a header; or ground truth.

    Without strata, all results of a topic are in one. ``is_paragraph``: in ground truth, all captions of a video are
    one query.
    """
    topics: defaultdict[str, _Rows] = defaultdict(_Rows)
    names = Names(path)
    with reading(path) as file:
        if read := truth.reader_of(path, file):
            found = read(path, file, is_paragraph)
            judged = {
                query: Judgments.of(list(videos), [_ONE_STRATUM] * len(videos), videos.values())
                for query, videos in found.videos.items()
            }
            return Qrels(judged, found.gallery)
        first, every = _peeked(lines(path, file))
        head = first.split()
        columns, shot_at = _AVS_QRELS, 2
        stratum_at: int | None = 3
        if head == _BEIR:
            next(every)
            columns, shot_at, stratum_at = ("query-id", "corpus-id", "score"), 1, None
        elif len(head) == len(_TREC_QRELS):
            columns, shot_at, stratum_at = _TREC_QRELS, 2, None
        for line, fields in rows(path, every, columns):
            stratum = _ONE_STRATUM if stratum_at is None else names.of(line, fields[stratum_at])
            rel = _rel(path, line, fields[-1])
            topics[names.of(line, fields[0])].judge(line, names.of(line, fields[shot_at]), stratum, rel)
    _refuse_repeats(path, topics)
    return Qrels({topic: Judgments.of(each.shots, each.strata, each.values) for topic, each in topics.items()})


def _peeked(every: Iterator[tuple[int, bytes]]) -> tuple[bytes, Iterator[tuple[int, bytes]]]:
    """Return the first line, empty if there is none, and all lines."""
    first = next(every, None)
    return (b"", every) if first is None else (first[1], itertools.chain([first], every))


class _Query(msgspec.Struct):
    """A line of BEIR's queries.jsonl."""

    id: str = msgspec.field(name="_id")
    text: str


def read_topics(path: Path, *, is_paragraph: bool = False) -> dict[str, str]:
    """Read the query text of each topic, without NIST's "Find shots of".

    ``is_paragraph``: as in :func:`read_qrels`.
    """
    with reading(path) as file:
        if read := truth.reader_of(path, file, topics=True):
            return _captions(path, read(path, file, is_paragraph))
        if _is_xml(file):
            return trec_xml.read_topics(path, file)
        topics: dict[str, str] = {}
        for line, topic, text in _texts(path, file):
            if topic in topics:
                refuse(path, line, "each topic once", f"topic {topic} again")
            topics[topic] = query(path, line, text)
    return topics


def _captions(path: Path, found: truth.Truth) -> dict[str, str]:
    if missing := next((topic for topic in found.videos if topic not in found.captions), None):
        raise TrecError(f"{path}: expected a caption for each query, found none for {missing}")
    return {topic: query(path, None, text) for topic, text in found.captions.items()}


def _texts(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str, str]]:
    names = Names(path)
    first, every = _peeked(lines(path, file))
    if first.startswith(b"{"):
        decoder = msgspec.json.Decoder(_Query)
        for line, raw in every:
            try:
                found = decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                refuse(path, line, "a JSON object with _id and text", str(error))
            yield line, names.of(line, found.id.encode()), found.text
        return
    for line, (number, text) in rows(path, every, ("topic", "text of the query"), last_is_text=True):
        yield line, names.of(line, number), decoded(path, line, text)


def _is_xml(file: IO[bytes]) -> bool:
    """Return whether the first character that is not white space is "<", without reading it."""
    start: bytes = file.peek(_PEEKED)  # type: ignore[attr-defined]
    return start.lstrip().startswith(b"<")


_PEEKED = 4_096


def joined(name: str, others: Collection[str]) -> str:
    """Return the name of a topic among ``others``: its own, or NIST's number with or without the task's before it.

    TRECVID's topic files number from 661, its judgments from 1661.
    """
    if name in others:
        return name
    if (found := _WITH_TASK.fullmatch(name)) and found[1] in others:
        return found[1]
    longer = [other for other in others if len(name) == _SHORT and other.endswith(name) and _WITH_TASK.fullmatch(other)]
    return longer[0] if len(longer) == 1 else name


_SHORT = 3


def matched(run: Run, qrels: Qrels) -> Run:
    """Return the run with its topics as they are :func:`joined` with those of the qrels, unless these are no NIST's."""
    if qrels.gallery is not None:
        return run
    return Run({joined(topic, qrels.topics): ranking for topic, ranking in run.topics.items()}, run.tag)


def write_run(path: Path, run: Run) -> None:
    """Write a run, the results of each topic ranked best first; scores are read back exactly.

    With the suffix ``.xml`` it is TRECVID's XML, which holds no scores. Raises :class:`TrecError` for a name with white
    space, which the format cannot represent.
    """
    if path.suffix == ".xml":
        trec_xml.write_run(path, {topic: each.ranked().shots for topic, each in run.topics.items()}, run.tag)
        return
    write(
        path,
        (
            f"{word(path, topic, is_first=True)} Q0 {word(path, shot)} {rank} {score!r} {word(path, run.tag)}\n"
            for topic, ranking in run.topics.items()
            for best in (ranking.ranked(),)
            for rank, (shot, score) in enumerate(zip(best.shots, best.scores.tolist(), strict=True), start=1)
        ),
    )


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write AVS judgments."""
    write(
        path,
        (
            f"{word(path, topic, is_first=True)} 0 {word(path, shot)} {word(path, each.stratum_names[stratum])} {rel}\n"
            for topic, each in qrels.topics.items()
            for shot, stratum, rel in zip(each.shots, each.strata.tolist(), each.rels.tolist(), strict=True)
        ),
    )


def write_topics(path: Path, topics: Mapping[str, str]) -> None:
    """Write topics, one per line; white space inside a text becomes single blanks."""
    write(path, (f"{word(path, topic, is_first=True)}\t{' '.join(text.split())}\n" for topic, text in topics.items()))


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

    def judge(self, line: int, shot: str, stratum: str, rel: int) -> None:
        self.add(line, shot, rel)
        self.strata.append(stratum)


def _score(path: Path, line: int, raw: bytes) -> float:
    try:
        score = float(raw)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or b"_" in raw:
        refuse(path, line, "a finite number as the score", raw)
    return score


def _rel(path: Path, line: int, raw: bytes) -> int:
    try:
        rel = int(raw)
    except ValueError:
        rel = _MAX_REL + 1
    if abs(rel) > _MAX_REL or b"_" in raw:
        refuse(path, line, "a whole number as the relevance", raw)
    return rel


def _refuse_repeats(path: Path, topics: Mapping[str, _Rows]) -> None:
    for topic, each in topics.items():
        if len(set(each.shots)) == len(each.shots):
            continue
        lines: dict[str, int] = {}
        for shot, line in zip(each.shots, each.lines, strict=True):
            if shot in lines:
                refuse(path, line, f"each shot once in topic {topic}", f"{shot} again, after line {lines[shot]}")
            lines[shot] = line
