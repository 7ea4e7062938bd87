"""The figures of an explanation: one document, from which the page, the JSON and the terminal's table are made.

Where the answer states one figure and the store gives another now, both are in it, side by side, with a sentence.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.explain import core
from streamer.explain.stored import State, Stored
from streamer.method import method_of
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from streamer.events import QueryReranked, RerankedCandidate
    from streamer.explain.found import Known
    from streamer.explain.pictures import Frame
    from streamer.explain.stored import Curve

Data = dict[str, Any]

DELETED = "deleted"
"""The status shown for a clip that was deleted: nothing of it is shown."""
_ROUNDING = 1e-5
"""Frame scores that differ by less have the same cause: a text's vector depends, in its last bits, on its batch."""
_IDENTICAL = "The store gives exactly the same figures now."
_LAST_DIGITS = (
    "Last digits differ from the answer's: a query's vector depends, in its last bits, on the queries that were "
    "encoded with it."
)
_CONTRIBUTIONS = (
    "The engine's part is the product that the method computes, alpha times the engine's normalized score. The frames' "
    "part is the score less that, so that the two add up to the last digit; the service rounds two products and their "
    "sum, so its own second product may differ in its last digit."
)


@dataclass(frozen=True, slots=True)
class Now:
    """What the store gives now: the same candidates, reranked by the same method with this process's model.

    ``results``: all of them by clip id, in their order. ``entries``, ``curves``: of the clips that are shown.
    """

    model_id: str
    results: Mapping[str, RerankedCandidate]
    entries: Mapping[str, Stored] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was found out about one answer.

    ``is_served``: whether the service gave the answer, or this command made it. ``now`` is None where no model was
    named, ``frames`` holds the pictures of the clips that are shown, ``deleted`` those of which nothing is shown,
    ``notes`` what else there is to say. ``top``: how many results are shown.
    """

    answer: QueryReranked
    is_served: bool
    top: int
    now: Now | None
    known: Known
    frames: Mapping[str, Frame]
    deleted: Collection[str] = ()
    notes: Sequence[str] = ()


def data(given: Explanation) -> Data:
    """Return the document."""
    answer = given.answer
    method = method_of(answer)
    explained = core.explain(answer)
    shown = [
        _result(given, result, found)
        for result, found in zip(answer.results[: given.top], explained[: given.top], strict=True)
    ]
    different = sum(each["differs"] == "figures" for each in shown)
    return {
        "query_id": answer.query_id if given.is_served else None,
        "query": answer.query,
        "engine": answer.engine,
        "issued_at": _time(answer.issued_at),
        "reranked_at": _time(answer.reranked_at),
        "served": given.is_served,
        "model_id": answer.model_id,
        "method": {
            "name": str(method),
            "alpha": method.alpha,
            "depth": method.depth,
            "normalization": method.normalization,
            "missing": method.missing,
            "pooling": method.pooling,
        },
        "degraded": answer.degraded.value if answer.degraded else None,
        "store_model_id": given.now.model_id if given.now else None,
        "candidates": len(answer.results),
        "shown": len(shown),
        "different": different,
        "sentence": _sentence(given, len(shown), different),
        "notes": [*given.notes, *_notes(given)],
        "contributions_are": _CONTRIBUTIONS,
        "results": shown,
    }


def _sentence(given: Explanation, shown: int, different: int) -> str:
    total = len(given.answer.results)
    listed = f"The first {shown} of {total} results" if shown < total else f"All {total} results"
    if not given.is_served:
        return f"{listed}, reranked now by this command; no service has answered this query."
    if given.now is None:
        return f"{listed}, as they were answered; the store was not asked what it gives now."
    if different:
        return f"{listed}, as they were answered; of {different} the store gives other figures now."
    return f"{listed}, as they were answered; the store gives the same figures now."


def _notes(given: Explanation) -> Iterator[str]:
    answer, now = given.answer, given.now
    if answer.degraded is not None:
        yield (
            f"The service passed this query on in the engine's order ({answer.degraded}), so no result has a score. "
            "What is shown as now is what reranking gives."
        )
    if now is None:
        yield (
            "No model is named (--model), so there are no curves, and nothing is recomputed from the store: all "
            "figures are the answer's own."
        )
    elif given.is_served and now.model_id != answer.model_id:
        yield (
            f"The answer was made with the model {answer.model_id}; this command has {now.model_id}. What is shown as "
            "now, and the curves, are of the latter and cannot be the same figures."
        )


def _result(given: Explanation, result: RerankedCandidate, found: core.Explained | None) -> Data:
    clip_id = result.clip_id
    upload = given.known.uploads.get(clip_id)
    entry = given.now.entries.get(clip_id, Stored(State.ABSENT)) if given.now else None
    is_deleted = clip_id in given.deleted
    now = given.now.results.get(clip_id) if given.now and given.is_served else None
    frame = None if is_deleted else given.frames.get(clip_id)
    curve = given.now.curves.get(clip_id) if given.now and not is_deleted else None
    made: Data = {
        "rank": result.rank,
        "control_rank": result.initial_rank,
        "climb": result.initial_rank - result.rank,
        "clip_id": clip_id,
        "status": DELETED if is_deleted else result.status.value,
        "answered_status": result.status.value,
        "score": result.score,
        "engine_score": result.initial_score,
        "frame_score": result.frame_score,
        "moment_ms": result.moment_ms,
        **_parts(result, found),
        "record": _record(given, clip_id, entry) if entry is not None else None,
        "upload": None if upload is None else {"uploaded_at": _time(upload.uploaded_at), "deleted": upload.uri is None},
        "now": None
        if now is None
        else {
            "rank": now.rank,
            "status": now.status.value,
            "score": now.score,
            "frame_score": now.frame_score,
            "moment_ms": now.moment_ms,
        },
        "curve": None if curve is None else {"times_ms": curve.times_ms, "cosines": curve.cosines},
        "frame": None
        if frame is None
        else {
            "is_shown": frame.uri is not None,
            "moment_ms": frame.moment_ms,
            "origin": frame.origin,
            "why": frame.why,
        },
    }
    made["differs"], made["said"] = _differences(given, result, now, made)
    if found is not None and found.recomputed != result.score:
        made["said"].append(
            f"From the scores that the answer states, this release computes {found.recomputed!r}, not {result.score!r}."
        )
    if entry is not None and entry.state is State.DAMAGED:
        made["said"].append("The stored record is damaged, or has vectors of another length; it counts as absent.")
    return made


def _parts(result: RerankedCandidate, found: core.Explained | None) -> Data:
    if found is None:
        nothing = dict.fromkeys(("contributions", "engine_normalized", "frames_normalized", "above", "swap"))
        return {**nothing, "swap_why": "it has no score, and keeps the engine's rank"}
    why = None
    if found.above is None:
        why = "it is the first one"
    elif found.swap is None:
        why = "no alpha from 0 to 1 brings it above its neighbour"
    return {
        "contributions": {name: str(part) for name, part in found.contributions._asdict().items()},
        "engine_normalized": found.line.engine,
        "frames_normalized": found.line.frames if found.has_frames else None,
        "frames_imputed": found.has_frames and result.frame_score is None,
        "above": found.above,
        "swap": None
        if found.swap is None
        else {"alpha": found.swap.alpha, "side": "above" if found.swap.towards else "below"},
        "swap_why": why,
    }


def _record(given: Explanation, clip_id: str, entry: Stored) -> Data:
    record = entry.embedding
    return {
        "state": entry.state.value,
        "uploaded_at": _time(record.uploaded_at) if record else None,
        "embedded_at": _time(given.known.embedded.get(clip_id)) if record else None,
        "duration_ms": record.duration_ms if record else None,
        "vectors": len(record.matrix) if record else None,
        "precision": record.matrix.dtype.name if record else None,
    }


def _differences(given: Explanation, result: RerankedCandidate, now: RerankedCandidate | None, made: Data) -> Any:
    """Compare an answer's figures with the store's now: whether and how they differ, and what to say of it."""
    said = list(_replaced(given, made))
    if now is None:
        return None, said
    pairs = {
        "status": (result.status.value, now.status.value),
        "rank": (result.rank, now.rank),
        "moment_ms": (result.moment_ms, now.moment_ms),
        "frame score": (result.frame_score, now.frame_score),
        "score": (result.score, now.score),
    }
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not other:
        return "nothing", [*said, _IDENTICAL]
    if all(_is_rounding(*pair) for pair in other.values()):
        return "rounding", [*said, _LAST_DIGITS]
    listed = ", ".join(f"{name} {before} in the answer, {after} now" for name, (before, after) in other.items())
    return "figures", [f"The store gives other figures now: {listed}.", *said]


def _is_rounding(before: object, after: object) -> bool:
    if not (isinstance(before, float) and isinstance(after, float)):
        return False
    return abs(before - after) < _ROUNDING


def _replaced(given: Explanation, made: Data) -> Iterator[str]:
    """Say where record, upload and answer are of different times."""
    record, upload = made["record"], made["upload"]
    if made["status"] == DELETED:
        yield "The clip was deleted; nothing of it is shown."
        return
    answered = _time(given.answer.reranked_at)
    if given.is_served and record and record["embedded_at"] and record["embedded_at"] > (answered or ""):
        yield f"The record was written at {record['embedded_at']}, after the answer."
    if record and upload and record["uploaded_at"] and upload["uploaded_at"]:
        if upload["uploaded_at"] > record["uploaded_at"]:
            yield (
                f"The topic has a newer upload ({upload['uploaded_at']}) than the record ({record['uploaded_at']}): "
                "the frame is of the newer file, the curve of the older one."
            )
        elif upload["uploaded_at"] < record["uploaded_at"]:
            yield f"The topic's last upload ({upload['uploaded_at']}) is older than the record's."


def _time(moment: dt.datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# -- for a terminal ------------------------------------------------------------------------------------------


def terminal(found: Data) -> TerminalTable:
    """Make the short table: one row a result, rounded; the page and the JSON have all digits."""
    names = ("rank", "before", "clip", "score", "engine", "frames", "cosine", "moment", "places change at", "status")
    table = TerminalTable(*names, title=plain(found["query"]), title_justify="left")
    for each in found["results"]:
        parts = each["contributions"] or {"engine": None, "frames": None}
        table.add_row(
            str(each["rank"]),
            str(each["control_rank"]),
            plain(each["clip_id"]),
            _number(each["score"]),
            *(_number(None if parts[name] is None else float(parts[name])) for name in ("engine", "frames")),
            _both(each),
            "-" if each["moment_ms"] is None else f"{each['moment_ms'] / 1000:.1f} s",
            "-" if each["swap"] is None else f"alpha {each['swap']['alpha']:.3f}",
            plain(each["status"]),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _both(each: Data) -> str:
    """Return the frame score, and after an arrow what the store gives now where that differs in more than rounding."""
    told = _number(each["frame_score"])
    return f"{told} > {_number(each['now']['frame_score'])} now" if each["differs"] == "figures" else told
