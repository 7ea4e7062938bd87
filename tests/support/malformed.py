"""Records that a service must refuse: many kinds, each with what it must be told apart from."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.driver import RESULTS, UPLOADED, Record, limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    Event = dict[str, Any]

CLOCK = "2024-05-01T12:00:00Z"


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of malformed record.

    Attributes:
        name: What is wrong.
        make: The record's value, given a number that makes it unlike the others of its kind.
        family: Faults of two named families never share a reason; an unnamed one may be classed with any.

    """

    name: str
    make: Callable[[int], bytes | None]
    family: str = ""


def encoded(event: object) -> bytes:
    """Return the JSON of an event; `NaN` and the like are written as Python does."""
    return json.dumps(event, ensure_ascii=False).encode()


def malformed(
    faults: list[Fault], count: int, headers: Callable[[int], Iterable[tuple[str, bytes]]]
) -> dict[Record, Fault]:
    """Return `count` records, the kinds in turn."""
    return {
        Record(f"malformed-{index}".encode(), fault.make(index), tuple(headers(index))): fault
        for index, fault in zip(range(count), itertools.cycle(faults), strict=False)
    }


def check_reasons(reasons: Iterable[tuple[Fault, str]]) -> None:
    """Show that one kind of fault has one reason, and that families of faults have different ones."""
    by_name, by_family = defaultdict(set), defaultdict(set)
    for fault, reason in reasons:
        by_name[fault.name].add(reason)
        if fault.family:
            by_family[fault.family].add(reason)
    assert all(len(found) == 1 for found in by_name.values()), dict(by_name)
    for one, other in itertools.combinations(by_family, 2):
        assert not by_family[one] & by_family[other], (one, other, dict(by_name))


def upload(index: int, **changed: object) -> Event:
    """Return an upload with some fields changed; a field changed to `...` is left out."""
    event = {"clip_id": f"malformed-{index}", "uri": "file:///nowhere.mp4", "uploaded_at": CLOCK} | changed
    return {name: value for name, value in event.items() if value is not ...}


def query(index: int, **changed: object) -> Event:
    """Return query results with some fields changed; a field changed to `...` is left out."""
    results = [{"clip_id": "clip-0001", "score": 2.5}, {"clip_id": "clip-0002", "score": 1.5}]
    event: Event = {"query_id": f"malformed-{index}", "query": "a red disc", "engine": "bm25"}
    event |= {"issued_at": CLOCK, "results": results} | changed
    return {name: value for name, value in event.items() if value is not ...}


def unreadable(event: Callable[[int], Event]) -> list[Fault]:
    """Return the faults that any topic of JSON can see."""
    return [
        Fault("not JSON", lambda index: f"clip {index} is up".encode(), "unreadable"),
        Fault("truncated JSON", lambda index: encoded(event(index))[:-9], "unreadable"),
        Fault(
            "invalid UTF-8",
            lambda index: encoded(event(index)).replace(b"malformed", b"malf\xffrmed"),
            "unreadable",
        ),
        Fault("no object", lambda index: encoded([event(index)]), "invalid"),
    ]


def upload_faults(folder: Path) -> list[Fault]:
    """Return the faults of `clips.uploaded`, where files may come from `folder` alone."""
    noise = folder / "noise.mp4"
    noise.write_bytes(b"this was never a film" * 500)
    hollow = folder / "hollow.mp4"
    hollow.write_bytes(b"")
    outside = folder.parent / "outside.mp4"
    outside.write_bytes(b"")
    long_id = limit(UPLOADED, "clip_id", "maxLength") + 1

    def fault(name: str, family: str, **changed: object) -> Fault:
        return Fault(name, lambda index: encoded(upload(index, **changed)), family)

    return [
        *unreadable(upload),
        fault("clip_id is a number", "invalid", clip_id=7),
        fault("uri is a list", "invalid", uri=["file:///a.mp4"]),
        fault("attributes are a list", "invalid", attributes=["ja"]),
        fault("uploaded_at is no time", "invalid", uploaded_at="yesterday"),
        fault("no clip_id", "invalid", clip_id=...),
        fault("no uri", "invalid", uri=...),
        fault("clip_id is empty", "", clip_id=""),
        fault("clip_id is too long", "limit", clip_id="c" * long_id),
        fault("clip_id has too many bytes", "limit", clip_id="é" * (long_id // 2 + 1)),
        fault("unknown scheme", "forbidden", uri="gopher://example.org/a.mp4"),
        fault("scheme not allowed", "forbidden", uri="http://127.0.0.1:1/a.mp4"),
        fault("folder not allowed", "forbidden", uri=outside.as_uri()),
        fault("climbs out of its folder", "forbidden", uri=f"{folder.as_uri()}/../{outside.name}"),
        fault("missing file", "missing", uri=(folder / "missing.mp4").as_uri()),
        fault("not a film", "undecodable", uri=noise.as_uri()),
        fault("an empty file", "undecodable", uri=hollow.as_uri()),
    ]


def query_faults() -> list[Fault]:
    """Return the faults of `query.results`."""
    long_id = limit(RESULTS, "query_id", "maxLength") + 1
    long_query = limit(RESULTS, "query", "maxLength") + 1
    too_many = limit(RESULTS, "results", "maxItems") + 1

    def fault(name: str, family: str, **changed: object) -> Fault:
        return Fault(name, lambda index: encoded(query(index, **changed)), family)

    def scored(name: str, family: str, score: object) -> Fault:
        return fault(name, family, results=[{"clip_id": "clip-0001", "score": score}])

    overflow = encoded(query(0, results=[{"clip_id": "clip-0001", "score": 42.5}])).replace(b"42.5", b"1e999")
    twice = [{"clip_id": "clip-0001", "score": 2.0}, {"clip_id": "clip-0001", "score": 1.0}]
    crowd = [{"clip_id": f"c{index}", "score": 1.0} for index in range(too_many)]
    return [
        *unreadable(query),
        Fault("null value", lambda _: None),
        Fault("empty value", lambda _: b""),
        Fault("score beyond a double", lambda _: overflow, "non-finite"),
        scored("score is NaN", "non-finite", float("nan")),
        scored("score is infinite", "non-finite", float("inf")),
        scored("score is a string", "invalid", "12"),
        scored("score is null", "invalid", None),
        scored("score is a boolean", "invalid", True),
        fault("results are an object", "invalid", results={"clip_id": "clip-0001", "score": 1.0}),
        fault("query is a number", "invalid", query=5),
        fault("no query", "invalid", query=...),
        fault("no query_id", "invalid", query_id=...),
        fault("no results", "invalid", results=...),
        fault("empty query", "blank", query=""),
        fault("blank query", "blank", query=" \t\n\u3000"),
        fault("query is too long", "limit", query="q" * long_query),
        fault("query_id is too long", "limit", query_id="q" * long_id),
        fault("clip_id is too long", "limit", results=[{"clip_id": "c" * 100_000, "score": 1.0}]),
        fault("duplicate clip_id", "duplicate", results=twice),
        fault("too many results", "limit", results=crowd),
        fault("issued_at is no time", "invalid", issued_at="soon"),
    ]
