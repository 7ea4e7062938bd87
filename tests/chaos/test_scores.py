"""The judge of scores must see what it is there to see: sound answers pass, each wrong number or status is found."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.events import QueryReranked
from tests.chaos.inputs import EPOCH, Input, last_queries
from tests.chaos.ledger import Ledger
from tests.chaos.scores import Judge
from tests.chaos.verify import StoredClip
from tests.support.driver import RESULTS, Record
from tests.support.recompute import Method, Ranking, Sampled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from tests.chaos.verify import Finding

DIM = 4
CLIPS = [f"clip-{number:04}" for number in range(12)]
TEXT = np.array([1.0, 0.0, 0.0, 0.0])
LATER = EPOCH.timestamp() + 10
QUERY = Input(0, Record(b"q", b"", topic=RESULTS, partition=0, offset=5), last_queries(0, CLIPS)[0].meaning)


def text(query: str) -> npt.NDArray[np.float64]:
    assert query == "a red disc"
    return TEXT


def record(seed: int) -> StoredClip:
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((3, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return StoredClip(vectors, (0, 500, 1_000), 1_500, 0)


def answer(records: Mapping[str, StoredClip], *, degraded: str | None = None) -> dict[str, Any]:
    """Make the answer that the definition of the method wants, as :mod:`tests.support.recompute` works it out."""
    results = [{"clip_id": clip_id, "score": 30 - 0.25 * place} for place, clip_id in enumerate(CLIPS)]
    sampled = {
        clip_id: Sampled(
            tuple(Fraction(ms, 1_000) for ms in each.times_ms), Fraction(1), Fraction(3, 2), each.vectors.astype(float)
        )
        for clip_id, each in records.items()
    }
    expectations = Ranking(TEXT, results, sampled, Method()).expected
    made: list[dict[str, Any]] = [
        {
            "clip_id": given["clip_id"],
            "score": expected.score,
            "initial_rank": rank,
            "initial_score": given["score"],
            "frame_score": expected.frame_score,
            "moment_ms": int(expected.moments[0]) if expected.moments else None,
            "status": expected.status,
        }
        for rank, (given, expected) in enumerate(zip(results, expectations, strict=True), 1)
    ]
    made.sort(key=lambda each: (-each["score"], each["initial_rank"]))
    return {
        "query_id": "q",
        "query": "a red disc",
        "engine": "bm25",
        "issued_at": EPOCH,
        "reranked_at": EPOCH,
        "model_id": "m",
        "alpha": 0.4,
        "depth": 100,
        "normalization": "minmax",
        "missing": "impute",
        "degraded": degraded,
        "results": [each | {"rank": rank} for rank, each in enumerate(made, 1)],
    }


STORE = {clip_id: record(number) for number, clip_id in enumerate(CLIPS[:8])}


def while_broken(
    event: dict[str, Any],
    possible: Mapping[str, list[StoredClip]] | None = None,
    ledger: Ledger | None = None,
    since: Mapping[str, float] | None = None,
) -> Finding:
    given = {clip_id: [each] for clip_id, each in STORE.items()} if possible is None else possible
    answers = [(replace(QUERY, published_at=LATER), msgspec.convert(event, QueryReranked))]
    return Judge(text).while_broken(answers, given, ledger or Ledger(), since or {})


def in_the_end(event: dict[str, Any], store: Mapping[str, StoredClip] = STORE, expected: int = 1) -> Finding:
    return Judge(text).in_the_end([(QUERY, msgspec.convert(event, QueryReranked))], store, expected)


@given(st.sets(st.sampled_from(CLIPS)), st.integers(0, 1_000))
def test_what_the_definition_says_passes_whatever_the_store_holds(there: set[str], seed: int) -> None:
    store = {clip_id: record(seed + number) for number, clip_id in enumerate(sorted(there))}
    event = answer(store)
    assert in_the_end(event, store).problems == []
    assert while_broken(event, {clip_id: [each] for clip_id, each in store.items()}).problems == []


def spoiled(place: int, **changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda event: event["results"][place].update(changed)


def reranked(event: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoil(next(each for each in event["results"] if each["status"] == "reranked"))


@pytest.mark.parametrize(
    "spoil",
    [
        spoiled(3, score=0.123),
        lambda event: reranked(event, lambda each: each.update(frame_score=each["frame_score"] + 0.01)),
        lambda event: reranked(event, lambda each: each.update(moment_ms=499)),
        lambda event: reranked(event, lambda each: each.update(frame_score=None)),
        lambda event: event["results"].reverse(),
        lambda event: event.update(alpha=0.5),
    ],
    ids=["score", "frame score", "moment", "no frame score", "order", "alpha"],
)
def test_a_wrong_number_is_found(spoil: Callable[[dict[str, Any]], None]) -> None:
    event = answer(STORE)
    spoil(event)
    assert while_broken(event).problems
    assert in_the_end(event).problems


def test_a_score_of_another_clips_record_is_found_and_one_of_an_earlier_version_only_in_the_end() -> None:
    event = answer(STORE)
    swapped = STORE | {CLIPS[0]: STORE[CLIPS[1]], CLIPS[1]: STORE[CLIPS[0]]}
    assert len(while_broken(event, {clip_id: [each] for clip_id, each in swapped.items()}).problems) == 2
    newer = STORE | {CLIPS[0]: record(99)}
    both = {clip_id: [each] for clip_id, each in STORE.items()} | {CLIPS[0]: [record(99), STORE[CLIPS[0]]]}
    assert while_broken(event, both).problems == []
    assert len(in_the_end(event, newer).problems) == 1


def test_in_the_end_a_status_follows_from_the_store_alone() -> None:
    event = answer(STORE)
    absent = {clip_id: each for clip_id, each in STORE.items() if clip_id != CLIPS[0]}
    assert in_the_end(event, absent).problems == [f"q: {CLIPS[0]} is reranked and should be not_embedded"]
    assert in_the_end(event, STORE | {CLIPS[9]: record(9)}).problems == [
        f"q: {CLIPS[9]} is not_embedded and should be reranked"
    ]
    assert in_the_end(answer(STORE, degraded="store_unavailable")).problems == ["q is degraded: store_unavailable"]
    assert in_the_end(event, expected=2).problems == ["1 answers are missing"]


def test_a_clip_that_was_embedded_before_the_query_is_so_in_the_answer_unless_a_fault_hides_it() -> None:
    """This clip has no record, which may be only if it had none when the query came, or while a node is away."""
    event = answer(STORE)
    hidden = Ledger()
    hidden.allow_incomplete(RESULTS, 0, 5, 6)
    early, late = {CLIPS[9]: LATER - 2}, {CLIPS[9]: LATER + 2}
    assert while_broken(event, since=late).problems == []
    assert while_broken(event, since=early).problems == [
        f"q: {CLIPS[9]} is not embedded, and was 2.0 s before the query"
    ]
    assert while_broken(event, since=early, ledger=hidden).problems == []


def test_a_candidate_is_unavailable_only_where_a_fault_entitles_to_it() -> None:
    event = answer(STORE)
    next(each for each in event["results"] if each["status"] == "not_embedded")["status"] = "unavailable"
    other, hidden = Ledger(), Ledger()
    other.allow_incomplete(RESULTS, 0, 6, 9)
    hidden.allow_degraded(RESULTS, 0, 0, 9)
    assert len(while_broken(event).problems) == 1
    assert len(while_broken(event, ledger=other).problems) == 1
    assert while_broken(event, ledger=hidden).problems == []
    assert len(in_the_end(event).problems) == 1


@given(st.sets(st.integers(0, 400)), st.integers(0, 100))
def test_the_last_queries_ask_for_every_clip_once_and_within_the_depth(numbers: set[int], seed: int) -> None:
    clip_ids = sorted(f"clip-{number}" for number in numbers)
    asked = [each.meaning.candidates for each in last_queries(seed, clip_ids)]  # type: ignore[union-attr]
    assert all(len(candidates) <= 100 for candidates in asked)
    assert sorted(each for candidates in asked for each in candidates if not each.startswith("stranger")) == clip_ids
