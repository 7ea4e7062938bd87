"""Replays: where result lists come from, how answers become a run, and what is said of what cannot be replayed."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.codec import JSON
from streamer.encoders import EncoderError
from streamer.evaluation.questions import ReplayError, events_of_file, questions_of
from streamer.evaluation.replay import Replay, offline, ranking_of, writable
from streamer.evaluation.trec import Ranking, Run, read_run, write_run
from streamer.evaluation.trec_rows import TrecError
from streamer.events import Candidate, QueryReranked, QueryResults, RerankedCandidate, Status
from streamer.method import Method
from streamer.settings import load
from streamer.store import Clip, Position, open_store
from tests.support.encoders import AxisEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
DIM = 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"lmdb:{tmp_path / 'store'}", model_id="axes", dim=DIM, precision="float16")
    for number in range(DIM):
        vectors = np.eye(DIM, dtype=np.float32)[[number]]
        opened.put([Clip(f"c{number}", AT, Position.of("log", number), 1000, vectors, np.array([0], np.uint32))])
    yield opened
    opened.close()


def answered(*scores: float | None, query_id: str = "q1") -> QueryReranked:
    results = [
        RerankedCandidate(
            f"c{rank}", rank, score, rank, 0.0, None, None, Status.RERANKED if score else Status.BELOW_DEPTH
        )
        for rank, score in enumerate(scores, start=1)
    ]
    return QueryReranked(
        query_id=query_id, query="q", engine="e", issued_at=AT, reranked_at=AT, model_id="axes", alpha=0.4, depth=9,
        normalization="minmax", degraded=None, results=results,
    )  # fmt: skip


def test_results_of_a_run_become_events_best_first() -> None:
    run = Run({"501": Ranking(("a", "c", "b"), np.array([1.0, 2.0, 2.0]))}, "bm25")
    (question,) = questions_of(run, {"501": "a dog", "502": "a cat"})
    assert (question.query_id, question.query, question.engine) == ("501", "a dog", "bm25")
    assert [(each.clip_id, each.score) for each in question.results] == [("c", 2.0), ("b", 2.0), ("a", 1.0)]


def test_a_topic_is_found_by_the_number_that_nist_gives_it_elsewhere() -> None:
    (question,) = questions_of(Run({"1661": Ranking(("a",), np.ones(1))}), {"661": "a dog"})
    assert (question.query_id, question.query) == ("1661", "a dog")


def test_a_topic_without_a_text_is_named() -> None:
    with pytest.raises(ReplayError, match="topic 501 of the run has no text among the 1 topics"):
        list(questions_of(Run({"501": Ranking(("a",), np.ones(1))}), {"502": "a cat"}))


def test_recorded_events_are_read_and_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    event = QueryResults(query_id="q", query="axis 0", engine="e", issued_at=AT, results=[])
    path = tmp_path / "events.jsonl"
    path.write_bytes(JSON.encode(event) + b"\r\n\n" + b'{"query_id": 1}\n')
    events = events_of_file(path)
    assert next(events) == event
    with pytest.raises(ReplayError, match=r"events.jsonl:3: expected a query.results event, found .*query"):
        next(events)


scores = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.5, 0.5 + 2e-16, 0.25, 1e-40, -1e308])


@given(st.lists(scores.filter(bool), max_size=20), st.integers(0, 20))
def test_whoever_sorts_a_replayed_run_by_score_finds_the_answers_order(within: list[float], below: int) -> None:
    ordered = sorted(within, reverse=True)
    answer = answered(*ordered, *[None] * below)
    ranking = ranking_of(answer)
    assert list(ranking.shots) == [result.clip_id for result in answer.results]
    for exact in (ranking.scores, ranking.scores.astype(np.float32)):
        assert np.isfinite(exact).all()
        assert (np.diff(exact) < 0).all()
    assert ranking.order().tolist() == list(range(len(answer.results)))


def test_scores_that_differ_are_the_answers_own_and_what_is_below_the_depth_follows() -> None:
    ranking = ranking_of(answered(0.9, 0.1, 0.1, None, None))
    tie = float(np.nextafter(np.float32(0.1), np.float32(-1)))
    assert ranking.scores.tolist() == [0.9, 0.1, tie, 0.1 - 1, 0.1 - 2]


def test_offline_gives_the_rerankers_answers_and_a_run_that_is_read_back_the_same(store: Store, tmp_path: Path) -> None:
    results = [Candidate(clip_id=clip_id, score=score) for clip_id, score in (("c0", 3.0), ("new", 2.0), ("c2", 1.0))]
    question = QueryResults(query_id="501", query="axis 2", engine="e", issued_at=AT, results=results)
    (answer,) = offline(
        Method(alpha=0.4, depth=3, normalization="minmax"),
        [question],
        AxisEncoder(DIM, EncoderError("not finite")),
        store,
    )
    assert [(each.clip_id, each.score) for each in answer.results] == [("c2", 0.6), ("new", 0.5), ("c0", 0.4)]
    replay = Replay([answer])
    assert replay.summary().startswith("1 topics (alpha 0.4, depth 3, minmax, model axes): 2 reranked, 1 not embedded")
    path = tmp_path / "run"
    write_run(path, Run(replay.topics))
    read = read_run(path)
    assert read.topics["501"].shots == ("c2", "new", "c0")
    assert read.topics["501"].scores.tolist() == [0.6, 0.5, 0.4]


@pytest.mark.parametrize(
    ("query_id", "clip_id", "tag", "problem"),
    [
        ("my query", "c0", "t", "white space"),
        ("q", "my clip", "t", "white space"),
        ("#q", "c0", "t", "does not begin with #"),
        ("q", "c0", "my tag", "white space"),
        ("earlier", "c0", "t", "query id earlier occurs twice"),
    ],
)
def test_names_that_a_run_cannot_hold_are_refused_before_anything_is_scored(
    query_id: str, clip_id: str, tag: str, problem: str, tmp_path: Path
) -> None:
    asked = [
        QueryResults(query_id=each, query="q", engine="e", issued_at=AT, results=[Candidate(clip_id=clip, score=1.0)])
        for each, clip in (("earlier", "c0"), (query_id, clip_id))
    ]
    with pytest.raises((ReplayError, TrecError), match=problem):
        writable(asked, tmp_path / "run", tag)
    assert writable(asked[:1], tmp_path / "run", "t") == asked[:1]
    with pytest.raises(ReplayError, match="No such folder"):
        writable(asked[:1], tmp_path / "no" / "run", "t")


def test_a_query_that_cannot_be_encoded_is_named(store: Store) -> None:
    question = QueryResults(query_id="q", query="poison", engine="e", issued_at=AT, results=[])
    with pytest.raises(ReplayError, match="'poison' cannot be encoded: not finite"):
        list(offline(load({}).method, [question], AxisEncoder(DIM, EncoderError("not finite")), store))


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([], "no queries to replay"),
        ([answered(0.5), answered(0.4)], "query id q1 occurs twice"),
        ([answered(None)], "none of the candidates is embedded"),
    ],
)
def test_a_replay_without_usable_results_is_refused(answers: list[QueryReranked], problem: str) -> None:
    with pytest.raises(ReplayError, match=problem):
        Replay(answers)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give exactly one of --run, --events and --from-topic"),
        (["--run", "FILE"], "--run and --topics must be given together"),
        (["--events", "FILE", "--from-topic"], "give exactly one of --run, --events and --from-topic"),
    ],
)
def test_exactly_one_source_of_result_lists_must_be_given(arguments: list[str], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps({}))
    given_arguments = [str(file) if each == "FILE" else each for each in arguments]
    done = CliRunner().invoke(cli, ["replay", *given_arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert problem in done.output
