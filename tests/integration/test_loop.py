"""The consume loop on a real broker: exactly once, whatever order work ends in and whatever ends it."""

from __future__ import annotations

import random
import re
import secrets
import threading
import time
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient

from streamer.events import Reason, now
from streamer.kafka import FatalError, Output, dead_letter
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.commit.outcomes import RestartError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.records import record_of
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from tests.support.configs import alter_config
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running, slowly, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.kafka import Record
    from streamer.metrics import Metrics


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix, "instance_id": "one"})
    apply(made, load_specs())
    return made


def test_each_record_comes_out_once_though_work_ends_in_any_order(settings: Settings) -> None:
    rng = random.Random(1)  # noqa: S311 - reproducible, not secret

    def work(record: Record) -> Sequence[Output]:
        time.sleep(rng.random() * 0.01)
        if record.offset % 5 == 4:
            return [dead_letter(record, Reason.NOT_JSON, "no")]
        return echo(settings)(record)

    feed(settings, 600)
    with running(settings, work) as (metrics, _, _, ended):
        wait_until(
            lambda: (
                value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT))
                + value(metrics, "streamer_events_dead_lettered_total", topic=settings.topic(INPUT), reason="not_json")
                == 600
            )
        )
    assert ended == [True]
    keys = Counter(record.key for record in read(settings, OUTPUT, INPUT + ".dlq"))
    assert keys == Counter(f"q{i}".encode() for i in range(600))


def test_a_stop_in_the_middle_of_work_loses_and_doubles_nothing(settings: Settings) -> None:
    hasty = settings.model_copy(update={"drain_timeout": 0.3})
    feed(settings, 300)
    stuck = threading.Event()

    def work(record: Record) -> Sequence[Output]:
        if record.offset % 10 == 9:
            stuck.wait(20)
        return echo(settings)(record)

    with running(hasty, work) as (metrics, _, _, ended):
        wait_until(lambda: value(metrics, "streamer_transactions_total", outcome="committed") > 0)
    assert ended == [False]
    stuck.set()
    with running(settings, echo(settings)) as (metrics, _, _, ended):
        before = len(read(settings, OUTPUT))
        assert before
        wait_until(lambda: len(read(settings, OUTPUT)) == 300)
    assert ended == [True]
    assert Counter(record.key for record in read(settings, OUTPUT)) == Counter(f"q{i}".encode() for i in range(300))


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_record_that_hangs_holds_up_no_other_and_no_other_is_done_again_after_a_restart(
    settings: Settings, protocol: str
) -> None:
    chosen = settings.model_copy(update={"kafka": {"group.protocol": protocol}, "drain_timeout": 0.5})
    feed(settings, 300)
    stuck = threading.Event()

    def work(record: Record) -> Sequence[Output]:
        if record.key == b"q0":
            stuck.wait(60)
        return echo(settings)(record)

    def produced(metrics: Metrics) -> float:
        return value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT))

    with running(chosen, work) as (metrics, _, _, ended):
        wait_until(lambda: produced(metrics) == 299)
    assert ended == [False]
    stuck.set()
    with running(chosen, echo(settings)) as (metrics, _, _, ended):
        wait_until(lambda: produced(metrics) == 1)
        feed(settings, 300, start=300)
        wait_until(lambda: produced(metrics) == 301)
        assert value(metrics, "streamer_events_consumed_total", topic=settings.topic(INPUT)) == 301
    assert ended == [True]
    assert Counter(record.key for record in read(settings, OUTPUT)) == Counter(f"q{i}".encode() for i in range(600))


def test_slow_work_pauses_its_partition_and_costs_no_membership(settings: Settings) -> None:
    strict = settings.model_copy(
        update={"kafka": {"max.poll.interval.ms": "6000", "session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}}
    )
    free = threading.Event()

    def work(record: Record) -> Sequence[Output]:
        free.wait(30)
        return echo(settings)(record)

    feed(settings, 200)
    with running(strict, work, max_records=24) as (metrics, health, _, ended):
        wait_until(lambda: value(metrics, "streamer_paused_partitions") > 0)
        time.sleep(8)
        assert value(metrics, "streamer_in_flight_records") <= 24 + 32
        assert value(metrics, "streamer_rebalances_total", kind="assigned") == 1
        assert value(metrics, "streamer_rebalances_total", kind="lost") == 0
        assert health.liveness_problems() == []
        free.set()
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 200)
        wait_until(lambda: value(metrics, "streamer_paused_partitions") == 0)
    assert ended == [True]


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_partition_that_went_while_it_was_paused_and_came_back_flows_again(settings: Settings, protocol: str) -> None:
    chosen = settings.model_copy(update={"kafka": {"group.protocol": protocol}, "drain_timeout": 0.4})
    other = chosen.model_copy(update={"instance_id": "two"})
    free = threading.Event()

    def work(record: Record) -> Sequence[Output]:
        free.wait(60)
        return echo(settings)(record)

    feed(settings, 600)
    with running(chosen, work, max_records=24) as (metrics, _, _, ended):
        wait_until(lambda: value(metrics, "streamer_paused_partitions") == 12)
        with running(other, work, max_records=24) as (others, _, _, _):
            wait_until(lambda: value(others, "streamer_assigned_partitions") == 6)
        wait_until(lambda: value(metrics, "streamer_assigned_partitions") == 12)
        free.set()
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 600)
    assert ended == [True]


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_an_instance_for_which_no_partition_is_left_is_ready_and_takes_over(
    kafka: LocalKafka, topic_prefix: str, protocol: str
) -> None:
    connection = {"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix}
    one = load({**connection, "instance_id": "one", "kafka": {"group.protocol": protocol}})
    two = one.model_copy(update={"instance_id": "two"})
    apply(one, [msgspec.structs.replace(each, partitions=1) for each in load_specs()])
    with ExitStack() as stack:
        with running(one, echo(one)) as (first, _, _, ended):
            wait_until(lambda: value(first, "streamer_assigned_partitions") == 1)
            second, health, _, second_ended = stack.enter_context(running(two, echo(two)))
            wait_until(lambda: health.readiness_problems() == ["start: starting"])
            assert value(second, "streamer_assigned_partitions") == 0
        feed(two, 20)
        wait_until(lambda: value(second, "streamer_events_produced_total", topic=two.topic(OUTPUT)) == 20)
    assert ended == second_ended == [True]


def test_a_second_process_with_the_same_transactional_id_fences_the_first(settings: Settings) -> None:
    with running(settings, echo(settings)) as (_, health, _, ended):
        wait_until(lambda: "assignment: no partitions assigned yet" not in health.readiness_problems())
        with running(settings, echo(settings)) as (_, second, _, second_ended):
            wait_until(lambda: not any("broker" in each for each in second.readiness_problems()))
            feed(settings, 400)
            wait_until(lambda: bool(ended))
            assert isinstance(ended[0], FatalError)
            assert "--instance-id" in str(ended[0])
            wait_until(lambda: len(read(settings, OUTPUT)) == 400)
        assert second_ended == [True]
    assert Counter(record.key for record in read(settings, OUTPUT)) == Counter(f"q{i}".encode() for i in range(400))


def test_an_output_that_no_broker_takes_is_dead_lettered_and_its_partition_goes_on(settings: Settings) -> None:
    def work(record: Record) -> Sequence[Output]:
        if record.key == b"q3":
            return [Output(settings.topic(OUTPUT), record.key, b"x" * (9 << 20), ())]
        if record.key == b"q5":
            letter = dead_letter(record, Reason.NOT_JSON, "no")
            return [Output(letter.topic, letter.key, b"y" * (9 << 20), letter.headers)]
        return echo(settings)(record)

    feed(settings, 10)
    with running(settings, work) as (metrics, _, _, ended):
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 8)
    assert ended == [True]
    dead = {record.key: dict(record.headers) for record in read(settings, INPUT + ".dlq")}
    assert dead.keys() == {b"q3", b"q5"}
    assert dead[b"q3"]["dlq.reason"] == b"too_large"
    assert dead[b"q5"]["dlq.truncated_from"] == str(9 << 20).encode()


def test_among_records_that_a_broker_refuses_together_only_the_guilty_are_dead_lettered(settings: Settings) -> None:
    topic = settings.topic(OUTPUT)
    alter_config(AdminClient({"bootstrap.servers": settings.bootstrap_servers}), topic, "max.message.bytes", "20000")
    feed(settings, 60)

    def work(record: Record) -> Sequence[Output]:
        size = 50_000 if record.key in {b"q7", b"q30"} else 3_000
        return [Output(topic, record.key, secrets.token_bytes(size), ())]

    with running(settings, work) as (metrics, _, _, ended):
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=topic) == 58)
    assert ended == [True]
    assert {record.key for record in read(settings, INPUT + ".dlq")} == {b"q7", b"q30"}
    good = {f"q{i}".encode() for i in range(60)} - {b"q7", b"q30"}
    assert Counter(record.key for record in read(settings, OUTPUT)) == Counter(good)


def test_readiness_reports_a_missing_topic_until_it_is_created(kafka: LocalKafka, topic_prefix: str) -> None:
    settings = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix})
    with running(settings, echo(settings)) as (_, health, _, _):
        wait_until(lambda: any("streamer topics apply" in each for each in health.readiness_problems()))
        apply(settings, load_specs())
        wait_until(lambda: health.readiness_problems() == ["start: starting"], seconds=40)


def test_a_topic_that_is_away_for_a_while_and_created_again_is_read_from_its_beginning(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    with running(settings, echo(settings)) as (metrics, health, _, ended):
        feed(settings, 50)
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 50)
        for future in admin.delete_topics([settings.topic(INPUT)]).values():
            future.result(10)
        wait_until(lambda: any("streamer topics apply" in each for each in health.readiness_problems()))
        apply(settings, load_specs())
        feed(settings, 20, start=100)
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 70)
        assert value(metrics, "streamer_topics_recreated_total", topic=settings.topic(INPUT)) == 1
    assert ended == [True]


def test_where_brokers_do_not_offer_the_newer_group_protocol_the_classic_one_serves(tmp_path: Path) -> None:
    properties = {"group.coordinator.rebalance.protocols": "classic"}
    with LocalKafka(data_dir=tmp_path / "kafka", properties=properties) as kafka:
        settings = load({"bootstrap_servers": kafka.bootstrap_servers, "instance_id": "one"})
        apply(settings, load_specs())
        feed(settings, 50)
        with running(settings, echo(settings)) as (metrics, health, _, ended):
            wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=OUTPUT) == 50)
            wait_until(lambda: health.readiness_problems() == ["start: starting"])
        assert ended == [True]


def test_brokers_that_stop_or_are_killed_one_after_the_other_cost_nothing_but_time() -> None:
    # Three brokers: a lone one may lose what it acknowledges while it stops.
    with LocalKafka(brokers=3) as kafka:
        settings = load({"bootstrap_servers": kafka.bootstrap_servers, "instance_id": "one"})
        apply(settings, load_specs())

        def kill_and_start(broker: int) -> None:
            kafka.kill(broker)
            kafka.restart(broker)

        faults = [(fault, broker) for fault in (kafka.restart, kill_and_start) for broker in range(3)]
        with running(settings, slowly(settings)) as (metrics, health, _, ended):

            def produced() -> float:
                return value(metrics, "streamer_events_produced_total", topic=OUTPUT)

            def await_produced(count: int) -> None:
                wait_until(lambda: produced() >= count, f"{count} outputs", seconds=90)

            wait_until(lambda: health.readiness_problems() == ["start: starting"])
            for turn, (fault, broker) in enumerate(faults):
                feed(settings, 150, start=150 * turn)
                # Each fault strikes among transactions of its own turn, when the fault before is overcome.
                await_produced(150 * turn + 1)
                fault(broker)
            await_produced(900)
            wait_until(lambda: health.readiness_problems() == ["start: starting"])
        assert ended == [True]
        assert Counter(record.key for record in read(settings, OUTPUT)) == Counter(f"q{i}".encode() for i in range(900))


def test_a_record_with_an_odd_time_or_odd_headers_is_a_record_like_any(settings: Settings) -> None:
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    topic = settings.topic(INPUT)
    # A record of 1970 would be deleted by retention at any moment.
    alter_config(AdminClient({"bootstrap.servers": settings.bootstrap_servers}), topic, "retention.ms", "-1")
    producer.produce(topic, b"{}", b"seconds", timestamp=1_795_000_000)
    producer.produce(topic, b"{}", b"none", headers=[("empty", None), ("\u00fc", b"\xff")])
    assert producer.flush(10) == 0
    times = {}

    def work(record: Record) -> Sequence[Output]:
        times[record.key] = record.timestamp
        return echo(settings)(record)

    with running(settings, work) as (metrics, _, _, ended):
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 2)
    assert ended == [True]
    assert times[b"seconds"].year == 1970


def test_a_timestamp_out_of_range_is_replaced_by_the_current_time() -> None:
    class Stamped:
        def timestamp(self) -> tuple[int, int]:
            return 1, time.time_ns() // 1000

        def headers(self) -> Any:
            return bytes([255]).decode()

        def topic(self) -> str:
            return "t"

        def partition(self) -> int:
            return 0

        def leader_epoch(self) -> int | None:
            return None

        offset = partition

        def key(self) -> None:
            return None

        def value(self) -> None:
            return None

    message: Any = Stamped()
    record = record_of(message)
    assert abs((record.timestamp - now()).total_seconds()) < 60
    assert record.headers == ()


def test_a_producer_that_is_lost_twice_is_replaced_and_nothing_is_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(settings, 200)
    faults = iter([RestartError("lost"), RestartError("lost again")])
    whole = Transactions.run

    def faulty(self: Transactions, batch: Any, metadata: Any) -> None:
        whole(self, batch, metadata)
        # The transaction is committed, but the answer is lost with the producer.
        for fault in faults:
            raise fault

    monkeypatch.setattr(Transactions, "run", faulty)
    with running(settings, slowly(settings)) as (metrics, _, _, ended):
        wait_until(lambda: len(read(settings, OUTPUT)) == 200)
        wait_until(lambda: value(metrics, "streamer_in_flight_records") == 0)
    assert ended == [True]
    assert value(metrics, "streamer_transactions_total", outcome="restarted") == 2
    assert Counter(each.key for each in read(settings, OUTPUT)) == Counter(f"q{i}".encode() for i in range(200))


class UnansweredConsumer:
    """A consumer as librdkafka's issue 5586 leaves it: a group member that never reads what it was assigned."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._told = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._consumer, name)

    def poll(self, timeout: float) -> object:
        self._consumer.poll(timeout)
        if self._told or not self._consumer.assignment():
            return None
        self._told = True
        error = KafkaError(KafkaError.NOT_COORDINATOR, "no committed offsets")
        return SimpleNamespace(error=lambda: error, partition=lambda: None, offset=lambda: None)

    def consume(self, _count: int, _timeout: float) -> list[object]:
        return []


def test_a_member_whose_offset_fetch_was_lost_rejoins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    make = GroupMembership._make
    made: list[Consumer] = []

    def first_unanswered(self: GroupMembership) -> Any:
        made.append(make(self))
        return made[-1] if len(made) > 1 else UnansweredConsumer(made[0])

    monkeypatch.setattr(GroupMembership, "_make", first_unanswered)
    feed(settings, 50)
    with running(settings, echo(settings)) as (metrics, health, _, ended):
        wait_until(lambda: value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == 50)
        wait_until(lambda: health.readiness_problems() == ["start: starting"])
    assert ended == [True]
    assert len(made) == 2
    assert len(read(settings, OUTPUT)) == 50


@pytest.mark.parametrize("committed_before", [0, 300])
def test_an_acknowledged_commit_that_the_group_does_not_know_ends_the_service_and_the_next_makes_up_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, committed_before: int
) -> None:
    whole = Transactions.run
    faults: list[Exception | None] = []

    def faulty(self: Transactions, batch: Any, metadata: Any) -> None:
        if not faults:
            whole(self, batch, metadata)
        elif (fault := faults.pop(0)) is not None:
            raise fault

    monkeypatch.setattr(Transactions, "run", faulty)
    with running(settings, slowly(settings)) as (metrics, _, _, ended):
        feed(settings, committed_before)
        wait_until(
            lambda: (
                value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT)) == committed_before
                and value(metrics, "streamer_in_flight_records") == 0
            )
        )
        # A commit is acknowledged of which nothing is there, as a lone broker did; then the producer is lost.
        faults += [None, RestartError("lost")]
        feed(settings, 200, start=committed_before)
        wait_until(lambda: bool(ended))
        assert isinstance(ended[0], FatalError)
        has = r"the group has \d+" if committed_before else "the group has nothing"
        assert re.search(rf"query.results-\d+: \d+ was committed, {has}", str(ended[0]))
        assert faults == []
    with running(settings, echo(settings)) as (_, _, _, ended):
        wait_until(lambda: len(read(settings, OUTPUT)) >= committed_before + 200)
    assert ended == [True]
    wanted = Counter(f"q{i}".encode() for i in range(committed_before + 200))
    assert Counter(each.key for each in read(settings, OUTPUT)) == wanted
