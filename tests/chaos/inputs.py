"""What is published, and what each record must lead to.

Everything but the files' folder follows from the seed. Each record carries an extension attribute of CloudEvents,
`ce_cause`, which is carried over to whatever the record causes, so every output names the record that it came from.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.synthetic.write import write_h264
from tests.support.driver import RESULTS, UPLOADED, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.chaos.plan import Scale

CE_CAUSE = "ce_cause"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_SIDE = 64
_FPS = 2
"""Two frames a second at the default interval of half a second: every frame is sampled."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A valid upload."""

    clip_id: str
    file: str
    uploaded_at: datetime


@dataclass(frozen=True, slots=True)
class Delete:
    """A null value."""

    clip_id: str


@dataclass(frozen=True, slots=True)
class Query:
    """A valid result event."""

    query_id: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that belongs into the dead letters, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that the service's client may be unable to read: its dead letter names its place, and maybe no more."""


Meaning = Upload | Delete | Query | Refused | Unreadable


@dataclass(frozen=True, slots=True)
class Input:
    """One record, when it is published (seconds from the start of the faults), and what it means.

    `record.topic` is without the prefix; its partition and offset are known once it is published. `generation` counts
    the logs that its partition has had: a recreated topic has another one, and so has a partition whose end was lost.
    `published_at`: its time in its topic, in seconds after 1970; 0 where it is not known.
    """

    at: float
    record: Record
    meaning: Meaning
    generation: int = 0
    published_at: float = 0.0

    @property
    def mark(self) -> str:
        """The record's own mark."""
        return self.record.header(CE_CAUSE)

    @property
    def order(self) -> tuple[int, int, int]:
        """Where it stands among the inputs of its partition, whatever became of the log."""
        return self.record.partition, self.generation, self.record.offset

    def placed(self, partition: int, offset: int, generation: int = 0) -> Input:
        """Return this input with its place in its topic."""
        return replace(self, record=replace(self.record, partition=partition, offset=offset), generation=generation)


def make_footage(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` files of three to six frames, each frame of another look; return their names."""
    draw = np.random.default_rng(seed)
    names = []
    for index in range(count):
        names.append(f"file-{index:02}.mp4")
        write_h264(folder / names[-1], _frames(draw), fps=_FPS)
    return names


def _frames(draw: np.random.Generator) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    for _ in range(int(draw.integers(3, 7))):
        frame = np.empty((_SIDE, _SIDE, 3), np.uint8)
        frame[:] = draw.integers(0, 256, 3)
        top, left = draw.integers(0, _SIDE // 2, 2)
        height, width = draw.integers(_SIDE // 4, _SIDE // 2, 2)
        frame[top : top + height, left : left + width] = draw.integers(0, 256, 3)
        yield frame


def make_inputs(seed: int, scale: Scale, folder: Path, files: Sequence[str], site: str) -> list[Input]:
    """Draw all records in the order of their publication; those of one clip keep their order in its log.

    The files are in `folder`, and served below `site`.
    """
    draw = random.Random(f"inputs {seed}")  # noqa: S311 - reproducible, not secret
    clip_ids = [f"clip-{index:04}" for index in range(scale.clips)]
    drafts = [
        *_uploads(draw, scale, clip_ids, (folder.as_uri(), folder.as_uri(), site), files),
        *_queries(draw, scale, clip_ids),
        *_refused(draw, scale, folder),
    ]
    drafts.sort(key=lambda draft: draft.at)
    return [_marked(draft, number) for number, draft in enumerate(drafts)]


def _marked(draft: Input, number: int) -> Input:
    record = replace(draft.record, headers=((CE_CAUSE, f"{draft.record.topic}/{number}".encode()),))
    return replace(draft, record=record)


def _input(at: float, topic: str, key: str, event: object, meaning: Meaning) -> Input:
    value = event if isinstance(event, bytes) or event is None else json.dumps(event).encode()
    return Input(at, Record(key.encode(), value, topic=topic), meaning)


# -- the lives of clips ------------------------------------------------------------------------------------

_LIVES = (
    "n", "n", "n", "nn", "no", "nno", "nono", "n=", "nd", "ndn", "nd=", "n=dn", "ndnd", "ndndn", "ndno", "nm", "nmn",
)  # fmt: skip
"""What happens to a clip, in the order of its log: n an upload newer than all before, o one older than the newest,
= the newest one delivered again, d a delete, m a newer upload whose file is missing."""
_VALID = "no="
_MISSING = "missing.mp4"


def _uploads(
    draw: random.Random, scale: Scale, clip_ids: Sequence[str], places: Sequence[str], files: Sequence[str]
) -> Iterator[Input]:
    """Give every clip a life, and some of them more, until there are as many valid uploads as wanted.

    `places`: prefixes of URIs, each of which has the files.
    """
    lives: dict[str, str] = defaultdict(str)
    times: dict[str, list[float]] = defaultdict(list)
    left = scale.uploads
    for clip_id in itertools.chain(clip_ids, iter(lambda: draw.choice(clip_ids), None)):
        fitting = [life for life in _LIVES if _valid(life) <= left]
        if not fitting:
            break
        life = draw.choice(fitting)
        left -= _valid(life)
        lives[clip_id] += life
        times[clip_id] += _moments(draw, len(life), scale.seconds)
    for clip_id, life in lives.items():
        yield from _live(draw, clip_id, life, sorted(times[clip_id]), places, files)


def _valid(life: str) -> int:
    return sum(letter in _VALID for letter in life)


def _moments(draw: random.Random, count: int, seconds: float) -> Iterator[float]:
    """Draw the times of a life: often within one batch, at times so far apart that a rebalance lies between."""
    at = draw.uniform(0, seconds)
    for _ in range(count):
        yield min(at, seconds)
        at += draw.expovariate(1 / draw.choice((0.05, 1, 15)))


def _live(
    draw: random.Random, clip_id: str, life: str, times: Sequence[float], places: Sequence[str], files: Sequence[str]
) -> Iterator[Input]:
    newest = EPOCH
    older = itertools.count(1)
    last: Input | None = None
    for letter, at in zip(life, times, strict=True):
        if letter == "d":
            yield _input(at, UPLOADED, clip_id, None, Delete(clip_id))
        elif letter == "=" and last is not None:
            yield replace(last, at=at)
        elif letter == "m":
            event = _upload_event(clip_id, f"{draw.choice(places)}/{_MISSING}", newest + timedelta(minutes=1))
            yield _input(at, UPLOADED, clip_id, event, Refused("not_found"))
        elif letter == "o":
            file = draw.choice(files)
            yield _upload(at, clip_id, f"{draw.choice(places)}/{file}", file, newest - timedelta(seconds=next(older)))
        else:
            newest += timedelta(hours=1)
            file = draw.choice(files)
            last = _upload(at, clip_id, f"{draw.choice(places)}/{file}", file, newest)
            yield last


def _upload(at: float, clip_id: str, uri: str, file: str, uploaded_at: datetime) -> Input:
    event = _upload_event(clip_id, uri, uploaded_at)
    return _input(at, UPLOADED, clip_id, event, Upload(clip_id, file, uploaded_at))


def _upload_event(clip_id: str, uri: str, uploaded_at: datetime) -> dict[str, Any]:
    return {"clip_id": clip_id, "uri": uri, "uploaded_at": uploaded_at.isoformat()}


def extra_upload(draw: random.Random, place: str, file: str) -> Input:
    """Return an upload of another clip that is published beside the others; `place` is a prefix of URIs."""
    clip_id = f"extra-{draw.getrandbits(64):x}"
    return _named(_upload(0, clip_id, f"{place}/{file}", file, EPOCH), clip_id)


def extra_refused(draw: random.Random, place: str, file: str) -> Input:
    """Return an upload that is published beside the others, and whose URI is refused."""
    clip_id = f"extra-{draw.getrandbits(64):x}"
    event = _upload_event(clip_id, f"{place}/{file}", EPOCH)
    return _named(_input(0, UPLOADED, clip_id, event, Refused("uri_refused")), clip_id)


# -- queries -----------------------------------------------------------------------------------------------

_COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "grey")
_FORMS = ("square", "disc", "stripe", "corner")
_CANDIDATES = (20, 100)
_STRANGERS = 3
"""Candidates of a result list that were never uploaded."""


def _queries(draw: random.Random, scale: Scale, clip_ids: Sequence[str]) -> Iterator[Input]:
    for number in range(scale.queries):
        fewest, most = (min(limit, len(clip_ids)) for limit in _CANDIDATES)
        candidates = draw.sample(clip_ids, draw.randint(fewest, most) - _STRANGERS)
        candidates += [f"stranger-{draw.randrange(10**6)}-{index}" for index in range(_STRANGERS)]
        draw.shuffle(candidates)
        event = _query_event(f"query-{number:05}", _text(draw), candidates)
        meaning = Query(event["query_id"], tuple(candidates))
        yield _input(draw.uniform(0, scale.seconds), RESULTS, meaning.query_id, event, meaning)


def _text(draw: random.Random) -> str:
    return f"a {draw.choice(_COLOURS)} {draw.choice(_FORMS)} on {draw.choice(_COLOURS)}"


def _query_event(query_id: str, text: str, candidates: Sequence[str]) -> dict[str, Any]:
    return {
        "query_id": query_id,
        "query": text,
        "engine": "bm25",
        "issued_at": EPOCH.isoformat(),
        "results": [{"clip_id": clip_id, "score": 30 - 0.25 * rank} for rank, clip_id in enumerate(candidates)],
    }


def extra_query(draw: random.Random) -> Input:
    """Return a query that is published beside the others; nobody has uploaded its candidates."""
    query_id = f"extra-{draw.getrandbits(64):x}"
    candidates = tuple(f"stranger-{draw.randrange(10**6)}-{index}" for index in range(_CANDIDATES[0]))
    event = _query_event(query_id, _text(draw), candidates)
    return _named(_input(0, RESULTS, query_id, event, Query(query_id, candidates)), query_id)


def last_queries(seed: int, clip_ids: Sequence[str]) -> list[Input]:
    """Return queries that together have all these clips as candidates, each within the depth."""
    draw = random.Random(f"last queries {seed}")  # noqa: S311 - reproducible, not secret
    shuffled = draw.sample(clip_ids, len(clip_ids))
    at_once = _CANDIDATES[1] - _STRANGERS
    made = []
    for number, first in enumerate(range(0, len(shuffled), at_once)):
        candidates = [*shuffled[first : first + at_once], *(f"stranger-last-{each}" for each in range(_STRANGERS))]
        query_id = f"last-{number}"
        event = _query_event(query_id, _text(draw), candidates)
        made.append(_named(_input(0, RESULTS, query_id, event, Query(query_id, tuple(candidates))), query_id))
    return made


def unreadable(topic: str, name: str, value: bytes) -> Input:
    """Return a record whose value the service's client may be unable to read; ``name`` is its key and its mark."""
    return _named(_input(0, topic, name, value, Unreadable()), name)


def _named(draft: Input, name: str) -> Input:
    return replace(draft, record=replace(draft.record, headers=((CE_CAUSE, name.encode()),)))


# -- what must be refused ----------------------------------------------------------------------------------


def _refused(draw: random.Random, scale: Scale, folder: Path) -> Iterator[Input]:
    """Make `scale.refused` records for each of both topics, the kinds in turn."""
    noise = folder / "noise.mp4"
    noise.write_bytes(b"this was never a film" * 500)
    for topic, kinds in ((UPLOADED, _refused_uploads(folder)), (RESULTS, _refused_queries())):
        for number, (reason, value) in zip(range(scale.refused), itertools.cycle(kinds), strict=False):
            at = draw.uniform(0, scale.seconds)
            yield _input(at, topic, f"refused-{number}", value(f"refused-{number}"), Refused(reason))


def _refused_uploads(folder: Path) -> list[tuple[str, Callable[[str], object]]]:
    def event(clip_id: str, **changed: object) -> dict[str, Any]:
        return _upload_event(clip_id, (folder / _MISSING).as_uri(), EPOCH) | changed

    return [
        ("not_json", lambda clip_id: f"{clip_id} is up".encode()),
        ("empty", lambda _: b""),
        ("wrong_type", lambda clip_id: [event(clip_id)]),
        ("wrong_type", lambda clip_id: event(clip_id, uri=7)),
        ("wrong_type", lambda clip_id: event(clip_id, uploaded_at="yesterday")),
        ("limit_exceeded", lambda clip_id: event(clip_id, uri="file:///" + "x" * 5_000)),
        ("key_mismatch", lambda clip_id: event(clip_id + "-other")),
        ("not_found", event),
        ("uri_refused", lambda clip_id: event(clip_id, uri="file:///etc/hostname")),
        ("decode_failed", lambda clip_id: event(clip_id, uri=(folder / "noise.mp4").as_uri())),
    ]


def _refused_queries() -> list[tuple[str, Callable[[str], object]]]:
    def event(query_id: str, text: str = "a red disc", candidates: Sequence[str] = ("clip-0001",)) -> dict[str, Any]:
        return _query_event(query_id, text, candidates)

    return [
        ("not_json", lambda query_id: json.dumps(event(query_id)).encode()[:-9]),
        ("empty", lambda _: b""),
        ("wrong_type", lambda query_id: event(query_id) | {"results": {}}),
        ("wrong_type", lambda query_id: event(query_id) | {"issued_at": "soon"}),
        ("limit_exceeded", lambda query_id: event(query_id, text="q" * 2_001)),
        ("blank_query", lambda query_id: event(query_id, text=" \t\n")),
        ("non_finite_score", lambda query_id: json.dumps(event(query_id)).replace("30.0", "1e999").encode()),
        ("duplicate_clip_id", lambda query_id: event(query_id, candidates=("clip-0001", "clip-0001"))),
        ("key_mismatch", lambda query_id: event(query_id + "-other")),
    ]
