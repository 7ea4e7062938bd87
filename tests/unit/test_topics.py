"""topics.toml, and the comparison of a topic with its spec."""

from __future__ import annotations

import copy
import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import events
from streamer.codec import JSON
from streamer.events import TOPICS
from streamer.kafka.admin.topic_files import BROKER_DEFAULT, TopicSpec, load_specs
from streamer.kafka.admin.topics import Aspect, Change, Outcome, TopicState, compare
from streamer.kafka.client.config import MAX_PRODUCED_BYTES
from streamer.settings import Settings, SettingsError
from streamer.topology import DEAD_LETTER_TOPICS

if TYPE_CHECKING:
    from pathlib import Path

KAFKA_NAME_LIMIT = 249
ALL_TOPICS = {*TOPICS, *DEAD_LETTER_TOPICS}


def shipped() -> dict[str, TopicSpec]:
    return {spec.name: spec for spec in load_specs()}


def test_topics_toml_covers_every_topic() -> None:
    assert shipped().keys() == ALL_TOPICS


def test_longest_prefix_leaves_names_that_kafka_takes() -> None:
    prefix = "p" * 100
    assert all(len(Settings(topic_prefix=prefix).topic(name)) <= KAFKA_NAME_LIMIT for name in ALL_TOPICS)
    with pytest.raises(ValueError, match="topic_prefix"):
        Settings(topic_prefix=prefix + "p")


def test_topics_take_the_largest_records_that_are_accepted_or_produced() -> None:
    specs = shipped()
    for topic in ("clips.uploaded", "query.results"):
        headroom = int(specs[topic].config["max.message.bytes"]) - events.MAX_EVENT_BYTES
        assert headroom >= events.MAX_ID_BYTES + 64 * 1024
    for topic in ("query.reranked", *DEAD_LETTER_TOPICS):
        assert int(specs[topic].config["max.message.bytes"]) >= MAX_PRODUCED_BYTES


def test_largest_accepted_result_list_fits_the_output_topic_after_reranking() -> None:
    moment = dt.datetime(2026, 3, 1, 9, 30, 0, 123000, tzinfo=dt.UTC)
    id_bytes = (events.MAX_EVENT_BYTES - 3000) // events.MAX_RESULTS - len('{"clip_id":"","score":1},')
    ids = [f"{n:05d}".ljust(id_bytes, "x") for n in range(events.MAX_RESULTS)]
    value = msgspec.json.encode(
        {
            "query_id": "q",
            "query": "x" * events.MAX_QUERY_CHARS,
            "engine": "e",
            "issued_at": moment,
            "results": [{"clip_id": clip_id, "score": 1} for clip_id in ids],
        }
    )
    assert events.MAX_EVENT_BYTES - 10_000 < len(value) <= events.MAX_EVENT_BYTES
    query = JSON.decode(events.QueryResults, value)
    longest = -0.12345678901234567e-300
    reranked = events.QueryReranked(
        query_id=query.query_id,
        query=query.query,
        engine=query.engine,
        issued_at=query.issued_at,
        reranked_at=moment,
        model_id="m" * 200,
        alpha=0.4,
        depth=events.MAX_RESULTS,
        normalization="minmax",
        degraded=None,
        results=[
            events.RerankedCandidate(
                clip_id=candidate.clip_id,
                rank=rank,
                score=longest,
                initial_rank=rank,
                initial_score=longest,
                frame_score=longest,
                moment_ms=10**9,
                status=events.Status.NOT_EMBEDDED,
            )
            for rank, candidate in enumerate(query.results, 1)
        ],
    )
    # 64 KiB for the key, the headers and the batch around them.
    limit = int(shipped()["query.reranked"].config["max.message.bytes"]) - 64 * 1024
    assert len(JSON.encode(reranked)) <= limit


def test_uploads_are_compacted_and_dead_letters_are_not() -> None:
    specs = shipped()
    assert [n for n, spec in specs.items() if spec.config["cleanup.policy"] == "compact"] == ["clips.uploaded"]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_topic_overrides_the_defaults_of_its_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [defaults]
        replication = -1
        config."retention.ms" = 1_000
        config."preallocate" = true
        [topics."query.results"]
        partitions = 3
        [topics."query.reranked"]
        partitions = 4
        replication = 2
        config."retention.ms" = "2000"
        """,
    )
    assert load_specs(path) == [
        TopicSpec(
            name="query.results",
            partitions=3,
            replication=BROKER_DEFAULT,
            config={"retention.ms": "1000", "preallocate": "true"},
        ),
        TopicSpec(
            name="query.reranked",
            partitions=4,
            replication=2,
            config={"retention.ms": "2000", "preallocate": "true"},
        ),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[topics", "not TOML"),
        ("", "missing required field `topics`"),
        ("topics = {}", "length >= 1"),
        ('[topics."query.result"]\npartitions = 1', "'query.result' is not a topic of this service"),
        ('[topics."query.results"]', "missing required field `partitions`"),
        ('[topics."query.results"]\npartitions = 0', ">= 1"),
        ('[topics."query.results"]\npartitions = 1\nretention = 5', "unknown field `retention`"),
        ('[topics."query.results"]\npartitions = 1\nreplication = 0', "replication of query.results is 0"),
        ('[topics."query.results"]\npartitions = 1\nreplication = -2', ">= -1"),
        (
            '[topics."query.results"]\npartitions = 1\nconfig."min.insync.replicas" = "two"',
            "min.insync.replicas of query.results is 'two'",
        ),
        ('[topics."query.results"]\npartitions = 1\nconfig."retention.ms" = [1]', "retention.ms|array"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=complaint) as refused:
        load_specs(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file"):
        load_specs(tmp_path / "nowhere.toml")


SPEC = TopicSpec(
    name="query.results",
    partitions=12,
    replication=3,
    config={"min.insync.replicas": "2", "retention.ms": "1000", "cleanup.policy": "compact,delete"},
)


def state(**changes: Any) -> TopicState:
    config = {
        "min.insync.replicas": "2",
        "retention.ms": "1000",
        "cleanup.policy": "delete,compact",
        "segment.ms": "7",
    }
    settled: dict[str, Any] = {"partitions": 12, "replicas": 3, "config": config}
    return TopicState(**copy.deepcopy(settled) | changes)


def lines(actual: TopicState | None, brokers: int = 3, spec: TopicSpec = SPEC) -> list[str]:
    return [str(difference) for difference in compare("x.query.results", spec, actual, brokers)]


def test_a_topic_that_is_as_wanted_has_no_differences_whatever_else_is_configured() -> None:
    assert lines(state()) == []


def test_a_missing_topic_is_one_difference() -> None:
    assert lines(None) == ["x.query.results: missing"]


def test_every_difference_is_a_line_with_both_values() -> None:
    actual = state(partitions=6, replicas=2, config={"min.insync.replicas": "1", "cleanup.policy": "delete"})
    assert lines(actual) == [
        "x.query.results: partitions is 6, not 12",
        "x.query.results: replication is 2, not 3",
        "x.query.results: cleanup.policy is delete, not compact,delete",
        "x.query.results: min.insync.replicas is 1, not 2",
        "x.query.results: retention.ms is unknown to the cluster, not 1000",
    ]


def test_only_what_kafka_can_change_in_place_is_repaired() -> None:
    refused = [
        difference.aspect
        for actual in (state(partitions=13), state(partitions=11), state(replicas=4), state(config={}))
        for difference in compare("t", SPEC, actual, 3)
        if difference.why_not
    ]
    assert refused == [Aspect.PARTITIONS, Aspect.REPLICATION]


def test_a_single_broker_has_one_replica_and_one_in_sync() -> None:
    single = state(replicas=1, config={**state().config, "min.insync.replicas": "1"})
    assert lines(single, brokers=1) == []
    assert lines(single, brokers=3) == ["x.query.results: replication is 1, not 3"]


def test_an_unreachable_broker_makes_no_difference() -> None:
    assert lines(state(), brokers=2) == []


def test_the_brokers_default_replication_is_never_compared() -> None:
    spec = msgspec.structs.replace(SPEC, replication=BROKER_DEFAULT)
    assert all(lines(state(replicas=replicas), spec=spec) == [] for replicas in (2, 3, 5))


@given(
    replication=st.integers(1, 7),
    brokers=st.integers(1, 7),
    in_sync=st.integers(1, 7),
    partitions=st.integers(1, 99),
)
def test_a_topic_created_from_a_spec_has_no_differences_from_it(
    replication: int, brokers: int, in_sync: int, partitions: int
) -> None:
    spec = TopicSpec(
        name="query.results",
        partitions=partitions,
        replication=replication,
        config={"min.insync.replicas": str(in_sync)},
    )
    replicas = spec.replicas(brokers)
    created = TopicState(partitions=partitions, replicas=replicas, config=spec.config_for(replicas))
    assert replicas <= brokers
    assert int(created.config["min.insync.replicas"]) <= replicas
    assert compare("t", spec, created, brokers) == []


def test_a_change_prints_as_one_line() -> None:
    assert str(Change("t", Outcome.REFUSED, "partitions 12 -> 6: no")) == "t: refused: partitions 12 -> 6: no"
