"""The reranker's pipeline on a real store, with an encoder whose vectors are known."""

from __future__ import annotations

import datetime as dt
import errno
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import orjson
import pytest

from streamer.codec import JSON
from streamer.events import Candidate, QueryReranked, QueryResults, now
from streamer.health import Health
from streamer.kafka import InFlightRecord, Record
from streamer.method import FixedPolicy, Method, method_of
from streamer.metrics import Metrics
from streamer.reranker import QueryVectors, Reranker
from streamer.settings import load
from streamer.store import Clip, MeasuredStore, Position, StoreUnavailableError, open_store
from tests.support.encoders import AxisEncoder
from tests.support.recompute_scores import pooled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamer.codec import Codec, E
    from streamer.events import Event
    from streamer.kafka import Output
    from streamer.match import Bank
    from streamer.method import Policy
    from streamer.scoring import ClipScores
    from streamer.store import Store

DIM = 4
AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


class Absent:
    """A store that cannot be reached."""

    def score(
        self, _clip_ids: Sequence[str], _vector: npt.NDArray[np.float32], _deadline: float | None, _pooling: str
    ) -> ClipScores:
        raise StoreUnavailableError("away")


class Partial:
    """A store of which some clips cannot be looked up."""

    def __init__(self, store: Store, unavailable: set[str]) -> None:
        self._store = store
        self._unavailable = unavailable

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = "max"
    ) -> ClipScores:
        assert deadline is not None
        scores = self._store.score(clip_ids, vector, deadline, pooling)
        lost = [place for place, clip_id in enumerate(clip_ids) if clip_id in self._unavailable]
        scores.frame.cosines[lost] = np.nan
        scores.frame.moments_ms[lost] = 0
        return scores._replace(unavailable=lost, why="a node is away")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"lmdb:{tmp_path}", model_id="axes", dim=DIM, precision="float32")
    for number in range(DIM):
        # Clip N shows axis N at 1500 ms, faintly at first.
        vectors = np.eye(DIM, dtype=np.float32)[[(number + 1) % DIM, number, number]]
        opened.put(
            [Clip(f"c{number}", AT, Position.of("log", number), 3000, vectors, np.array([0, 1500, 2000], np.uint32))]
        )
    yield opened
    opened.close()


class Harness:
    """Runs events through a reranker and gives what each caused."""

    def __init__(
        self,
        store: Any,
        policy: Policy | None = None,
        codec: Codec | None = None,
        poison: Exception | None = None,
        bank: Bank | None = None,
        **settings: Any,
    ) -> None:
        self.encoder = AxisEncoder(DIM, poison or RuntimeError("poison"))
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.health.ready("start")
        self._reranker = Reranker(
            given := load(settings),
            policy or FixedPolicy(given.method),
            codec=codec or JSON,
            queries=QueryVectors(self.encoder, 100),
            model_id="axes",
            store=store,
            metrics=self.metrics,
            health=self.health,
            bank=bank,
        )

    def run(self, *values: bytes | QueryResults) -> list[Sequence[Output]]:
        done = threading.Semaphore(0)
        works = [
            InFlightRecord(
                Record(
                    "query.results",
                    0,
                    offset,
                    None,
                    value if isinstance(value, bytes) else JSON.encode(value),
                    (("traceparent", b"00-1"),),
                    AT,
                ),
                done.release,
            )
            for offset, value in enumerate(values)
        ]
        self._reranker.submit(works)
        for _ in works:
            assert done.acquire(timeout=10)
        return [work.outputs or () for work in works]

    def answer(self, event: QueryResults) -> QueryReranked:
        ((output,),) = self.run(event)
        assert (output.topic, output.key) == ("query.reranked", event.query_id.encode())
        assert output.headers == (
            ("content-type", b"application/json"),
            ("streamer.group", b"streamer-rerank"),
            ("traceparent", b"00-1"),
        )
        return JSON.decode(QueryReranked, output.value, output.key)


def event(
    query: str, *clips: tuple[str, float], query_id: str = "q", issued_at: dt.datetime | None = None
) -> QueryResults:
    results = [Candidate(clip_id=clip_id, score=score) for clip_id, score in clips]
    return QueryResults(query_id=query_id, query=query, engine="e", issued_at=issued_at or now(), results=results)


def test_the_clip_that_shows_the_moment_rises_and_the_moment_is_its_first_best_frame(store: Store) -> None:
    answer = Harness(store).answer(event("axis 2", ("c0", 3.0), ("c3", 2.0), ("c2", 1.0)))
    assert [result.clip_id for result in answer.results] == ["c2", "c0", "c3"]
    first = answer.results[0]
    assert (first.rank, first.initial_rank, first.initial_score) == (1, 3, 1.0)
    assert (first.frame_score, first.moment_ms, first.status) == (1.0, 1500, "reranked")
    assert first.score == pytest.approx(0.6)
    assert [result.score for result in answer.results[1:]] == pytest.approx([0.4, 0.2])
    assert answer.degraded is None


def test_a_candidate_without_a_record_is_not_embedded_and_one_below_the_depth_keeps_its_place(store: Store) -> None:
    answer = Harness(store, depth=3).answer(event("axis 0", ("c1", 5.0), ("new", 4.0), ("c0", 3.0), ("c3", 2.0)))
    by_id = {result.clip_id: result for result in answer.results}
    assert by_id["new"].status == "not_embedded"
    assert by_id["new"].score == pytest.approx(0.5)
    assert by_id["new"].frame_score is None
    assert by_id["c3"].status == "below_depth"
    assert by_id["c3"].score is None
    assert by_id["c3"].rank == 4
    assert [result.rank for result in answer.results] == [1, 2, 3, 4]


def test_the_encoder_is_warm_in_the_thread_that_reranks(store: Store) -> None:
    """Its library keeps threads for each thread that calls it; they are there before the first query."""
    assert Harness(store).encoder.warmed_in == ("rerank-0",)


def test_an_empty_result_list_comes_back_empty(store: Store) -> None:
    assert Harness(store).answer(event("axis 0")).results == []


def test_an_unreachable_store_degrades_and_keeps_the_initial_order() -> None:
    harness = Harness(Absent())
    answer = harness.answer(event("axis 2", ("c0", 1.0), ("c2", 5.0)))
    assert answer.degraded == "store_unavailable"
    assert [(result.clip_id, result.rank, result.score) for result in answer.results] == [
        ("c0", 1, None),
        ("c2", 2, None),
    ]
    assert harness.metrics.registry.get_sample_value("streamer_events_degraded_total", {"reason": "store_unavailable"})


def test_candidates_that_cannot_be_looked_up_are_treated_like_those_without_a_record(store: Store) -> None:
    asked = event("axis 2", ("c0", 4.0), ("c1", 3.0), ("c2", 2.0), ("unknown", 1.0))
    answer = Harness(Partial(store, {"c1"})).answer(asked)
    assert answer.degraded is None
    statuses = {result.clip_id: result.status for result in answer.results}
    assert statuses == {"c0": "reranked", "c1": "unavailable", "c2": "reranked", "unknown": "not_embedded"}
    as_unknown = event("axis 2", ("c0", 4.0), ("other", 3.0), ("c2", 2.0), ("unknown", 1.0))
    expected = Harness(store).answer(as_unknown)
    assert [result.score for result in answer.results] == [result.score for result in expected.results]
    assert answer.results[0].clip_id == "c2"


@pytest.mark.parametrize(("least", "degraded"), [(0.5, None), (0.51, "store_unavailable")])
def test_a_list_is_reranked_if_enough_of_it_can_be_looked_up(store: Store, least: float, degraded: str | None) -> None:
    harness = Harness(Partial(store, {"c0", "c1"}), least_scored=least)
    answer = harness.answer(event("axis 2", ("c0", 4.0), ("c1", 3.0), ("c2", 2.0), ("c3", 1.0)))
    assert answer.degraded == degraded
    value = harness.metrics.registry.get_sample_value
    assert value("streamer_candidates_total", {"status": "unavailable"}) == (2 if degraded is None else 0)


def test_a_text_that_breaks_the_encoder_costs_the_others_of_its_batch_nothing(store: Store) -> None:
    harness = Harness(store)
    outputs = harness.run(event("axis 1", ("c1", 1.0)), event("poison", ("c1", 1.0)), event("axis 0", ("c0", 1.0)))
    answers = [JSON.decode(QueryReranked, output.value) for (output,) in outputs]
    assert [answer.degraded for answer in answers] == [None, "encoder_failed", None]


def test_a_late_event_is_passed_on_without_work(store: Store) -> None:
    harness = Harness(store, deadline_ms=1000)
    late = now() - dt.timedelta(seconds=2)
    assert harness.answer(event("axis 2", ("c0", 1.0), ("c2", 0.5), issued_at=late)).degraded == "deadline_exceeded"
    assert harness.encoder.calls == []
    assert harness.answer(event("axis 2", ("c0", 1.0), ("c2", 0.5))).degraded is None


def test_an_invalid_event_is_dead_lettered_between_good_ones(store: Store) -> None:
    outputs = Harness(store).run(event("axis 1", ("c1", 1.0)), b"{", event("axis 1", ("c1", 1.0)))
    assert [output.topic for (output,) in outputs] == ["query.reranked", "query.results.dlq", "query.reranked"]
    assert dict(outputs[1][0].headers)["dlq.reason"] == b"not_json"


def test_a_text_is_encoded_once(store: Store) -> None:
    harness = Harness(store)
    for _ in range(3):
        harness.answer(event("axis 1", ("c1", 1.0)))
    assert harness.encoder.calls == [["axis 1"]]
    value = harness.metrics.registry.get_sample_value
    assert value("streamer_query_cache_total", {"result": "hit"}) == 2
    assert value("streamer_query_cache_total", {"result": "miss"}) == 1


def test_a_fault_of_our_own_is_dead_lettered_and_the_next_event_is_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(store)
    with monkeypatch.context() as broken:
        broken.setattr("streamer.method.rerank", lambda *_, **__: 1 / 0)
        ((output,),) = harness.run(event("axis 1", ("c1", 1.0)))
    assert dict(output.headers)["dlq.reason"] == b"internal"
    assert orjson.loads(output.value or b"")["query_id"] == "q"
    assert harness.answer(event("axis 1", ("c1", 1.0))).degraded is None


SHORTAGES = {
    "memory": MemoryError(),
    "descriptors": OSError(errno.EMFILE, "too many open files"),
    "processes": RuntimeError("can't start new thread"),
}


def faults_counted(harness: Harness, lack: str) -> float:
    return harness.metrics.registry.get_sample_value("streamer_machine_faults_total", {"lack": lack}) or 0.0


@pytest.mark.parametrize("lack", SHORTAGES)
@pytest.mark.parametrize("where", ["read", "score", "rank"])
def test_what_the_machine_lacks_for_scoring_degrades_the_query_and_dead_letters_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, lack: str, where: str
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise SHORTAGES[lack]

    harness = Harness(store)
    with monkeypatch.context() as short:
        if where == "read":
            short.setattr(type(store), "read", fail)
        elif where == "score":
            short.setattr("streamer.scoring.FrameScorer.add", fail)
        else:
            short.setattr("streamer.method.rerank", fail)
        answer = harness.answer(event("axis 2", ("c0", 3.0), ("c2", 1.0)))
    assert answer.degraded == "store_unavailable"
    assert [(result.clip_id, result.status) for result in answer.results] == [
        ("c0", "below_depth"),
        ("c2", "below_depth"),
    ]
    assert faults_counted(harness, lack) == 1
    value = harness.metrics.registry.get_sample_value
    assert value("streamer_events_degraded_total", {"reason": "store_unavailable"}) == 1
    (problem,) = harness.health.readiness_problems()
    assert problem.startswith(f"machine: {lack}: ")
    assert harness.answer(event("axis 2", ("c0", 3.0), ("c2", 1.0))).degraded is None


@pytest.mark.parametrize("lack", SHORTAGES)
def test_what_the_machine_lacks_for_a_text_degrades_its_query_alone(store: Store, lack: str) -> None:
    harness = Harness(store, poison=SHORTAGES[lack])
    outputs = harness.run(event("axis 1", ("c1", 1.0)), event("poison", ("c1", 1.0)), event("axis 0", ("c0", 1.0)))
    answers = [JSON.decode(QueryReranked, output.value) for (output,) in outputs]
    assert [answer.degraded for answer in answers] == [None, "encoder_failed", None]
    assert faults_counted(harness, lack) >= 1
    (problem,) = harness.health.readiness_problems()
    assert problem.startswith(f"machine: {lack}: ")


class Short:
    """JSON, for which there is no memory the first few times."""

    content_type = JSON.content_type

    def __init__(self, *, decoding: int = 0, encoding: int = 0) -> None:
        self.decoding = decoding
        self.encoding = encoding

    def decode(self, model: type[E], value: bytes | None, key: bytes | None = None) -> E:
        self.decoding -= 1
        if self.decoding >= 0:
            raise MemoryError
        return JSON.decode(model, value, key)

    def encode(self, event: Event) -> bytes:
        self.encoding -= 1
        if self.encoding >= 0:
            raise MemoryError
        return JSON.encode(event)


@pytest.mark.parametrize("times", [1, 2, 3, 5])
@pytest.mark.parametrize("step", ["decoding", "encoding"])
def test_where_not_even_a_degraded_answer_can_be_made_the_queries_wait_and_each_is_answered_once(
    store: Store, step: str, times: int
) -> None:
    harness = Harness(store, codec=Short(**{step: times}))
    queries = [event(f"axis {number}", ("c0", 2.0), (f"c{number}", 1.0), query_id=str(number)) for number in (1, 2, 3)]
    outputs = harness.run(*queries)
    assert [output.topic for (output,) in outputs] == ["query.reranked"] * 3
    answers = [JSON.decode(QueryReranked, output.value) for (output,) in outputs]
    assert [answer.query_id for answer in answers] == ["1", "2", "3"]
    assert faults_counted(harness, "memory") > 0


def test_a_store_that_fails_while_there_is_no_memory_for_the_degraded_answer_dead_letters_nothing() -> None:
    harness = Harness(Absent(), codec=Short(encoding=2))
    outputs = harness.run(event("axis 1", ("c1", 1.0)), event("axis 2", ("c2", 1.0)))
    answers = [JSON.decode(QueryReranked, output.value) for (output,) in outputs]
    assert [answer.degraded for answer in answers] == ["store_unavailable"] * 2


class ByQuery:
    """A policy of two methods, told apart by the query's text."""

    engine_only = Method(alpha=1, depth=2, normalization="minmax")
    frames_only = Method(alpha=0, depth=3, normalization="zscore", missing="impute", pooling="softmax:0.5")

    def method_for(self, event: QueryResults) -> Method:
        return self.engine_only if event.query == "axis 1" else self.frames_only


def test_each_event_is_answered_by_the_method_that_the_policy_gives_it(store: Store) -> None:
    harness = Harness(store, policy=ByQuery())
    clips = (("c0", 3.0), ("c1", 2.0), ("c2", 1.0))
    answers = [harness.answer(event(query, *clips)) for query in ("axis 1", "axis 2")]
    assert [method_of(each) for each in answers] == [ByQuery.engine_only, ByQuery.frames_only]
    assert [[result.clip_id for result in each.results] for each in answers] == [
        ["c0", "c1", "c2"],  # the engine's order
        ["c2", "c1", "c0"],  # both show axis 2, c1 only in its first frame, c2 in the others
    ]
    frame_score = {result.clip_id: result.frame_score for result in answers[1].results}
    moments = {result.clip_id: result.moment_ms for result in answers[1].results}
    assert frame_score == {"c0": 0.0, "c1": pooled([1, 0, 0], "softmax:0.5"), "c2": pooled([0, 1, 1], "softmax:0.5")}
    assert moments == {"c0": 0, "c1": 0, "c2": 1500}  # the best frame's


class Alternating:
    """A policy that gives another method each time it is called, as one does whose settings are changed meanwhile."""

    def __init__(self) -> None:
        self._methods = itertools.cycle([ByQuery.engine_only, ByQuery.frames_only])

    def method_for(self, _event: QueryResults) -> Method:
        return next(self._methods)


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_states_the_method_that_was_applied(store: Store, late: bool) -> None:
    harness = Harness(store, policy=Alternating(), deadline_ms=1000)
    clips = (("c0", 3.0), ("c1", 2.0), ("c2", 1.0))
    issued_at = now() - dt.timedelta(seconds=60 if late else 0)
    answers = [harness.answer(event("axis 2", *clips, issued_at=issued_at)) for _ in range(2)]
    assert [each.alpha for each in answers] == [1, 0]
    orders = [[result.clip_id for result in each.results] for each in answers]
    assert orders == [["c0", "c1", "c2"], ["c0", "c1", "c2"] if late else ["c2", "c1", "c0"]]


def test_scoring_is_timed_separately_for_each_event_that_is_scored(store: Store) -> None:
    harness = Harness(MeasuredStore(store, metrics := Metrics()), deadline_ms=1000)
    began = time.perf_counter()
    harness.answer(event("axis 2", ("c0", 1.0), ("c2", 0.5)))
    took = time.perf_counter() - began
    harness.answer(event("axis 2", ("c0", 1.0), issued_at=now() - dt.timedelta(seconds=2)))
    value = harness.metrics.registry.get_sample_value
    assert value("streamer_scoring_seconds_count") == 1
    scoring = value("streamer_scoring_seconds_sum") or 0
    reading = metrics.registry.get_sample_value("streamer_store_seconds_sum", {"operation": "read"}) or 0
    assert 0 < scoring < scoring + reading < took


class MsgPack:
    """Events in another format."""

    content_type = "application/vnd.msgpack"

    def decode(self, model: type[E], value: bytes | None, _key: bytes | None = None) -> E:
        return msgspec.msgpack.decode(value or b"", type=model)

    def encode(self, event: Event) -> bytes:
        return msgspec.msgpack.encode(event)


def test_events_are_read_and_written_by_the_codec_that_is_handed_over(store: Store) -> None:
    codec = MsgPack()
    ((output,),) = Harness(store, codec=codec).run(codec.encode(event("axis 2", ("c0", 2.0), ("c2", 1.0))))
    answer = codec.decode(QueryReranked, output.value)
    assert [result.clip_id for result in answer.results] == ["c2", "c0"]
    assert dict(output.headers)["content-type"] == b"application/vnd.msgpack"
