"""Lag beside the broker's own figures, and beside the times at which records were produced."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.settings import Settings, load
from tests.support.consumer_groups import describe
from tests.support.loops import INPUT, OUTPUT, echo, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.kafka import Output, Record
    from streamer.local_kafka.broker import LocalKafka
    from streamer.metrics import Metrics

GROUP = "streamer-rerank"


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix, "instance_id": "one"})
    apply(made, load_specs())
    return made


class Gate:
    """Work that waits until it is let through."""

    def __init__(self, settings: Settings) -> None:
        self._echo = echo(settings)
        self._open = threading.Event()

    def __call__(self, record: Record) -> Sequence[Output]:
        self._open.wait(120)
        return self._echo(record)

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()


class Feeder:
    """Produces records of known ages to known partitions, in a transaction or without."""

    def __init__(self, settings: Settings, transactional_id: str | None = None) -> None:
        properties = {"bootstrap.servers": settings.bootstrap_servers}
        if transactional_id is not None:
            properties["transactional.id"] = settings.topic(transactional_id)
        self.producer = Producer(properties)
        self._topic = settings.topic(INPUT)
        if transactional_id is not None:
            self.producer.init_transactions()

    def produce(self, partition: int, *ages: float, value: bytes = b"{}") -> float:
        """Produce one record for each age in seconds; return the first one's timestamp."""
        stamps = [round((time.time() - age) * 1000) for age in ages]
        for stamp in stamps:
            self.producer.produce(self._topic, value, b"q", partition=partition, timestamp=stamp)
        self.producer.flush(30)
        return stamps[0] / 1000


def lags(settings: Settings, *instances: Metrics) -> dict[int, float]:
    """Return lag in records by partition, over all instances."""
    found = {}
    for metrics in instances:
        for metric in metrics.lag.collect():
            for sample in metric.samples:
                assert sample.labels["topic"] == settings.topic(INPUT)
                found[int(sample.labels["partition"])] = sample.value
    return found


def seconds(settings: Settings, metrics: Metrics, partition: int) -> float | None:
    return metrics.registry.get_sample_value(
        "streamer_consumer_lag_seconds", {"topic": settings.topic(INPUT), "partition": str(partition)}
    )


def brokers(kafka: LocalKafka, settings: Settings) -> dict[int, int | None]:
    return {number: each.lag for number, each in describe(kafka, settings.topic(GROUP)).items()}


def await_equal(kafka: LocalKafka, settings: Settings, *instances: Metrics, wanted: dict[int, int]) -> None:
    """Wait until our figures are as wanted, where they are not 0, and Kafka's tool says the same in between.

    That may need several attempts: a transaction that ends makes its log longer by a marker, which the tool sees before
    we ask again.
    """
    expected = {partition: wanted.get(partition, 0) for partition in range(12)}
    told: dict[int, int | None] = {}

    def equal() -> bool:
        told.clear()
        if lags(settings, *instances) == expected:
            told.update({number: lag for number, lag in brokers(kafka, settings).items() if lag})
        return told == wanted and lags(settings, *instances) == expected

    wait_until(equal, lambda: f"{wanted}: Kafka's tool says {told}, we {lags(settings, *instances)}", seconds=120)


def await_no_lag(settings: Settings, metrics: Metrics) -> None:
    wait_until(lambda: sum(lags(settings, metrics).values()) == 0, "no lag")


def await_ages(settings: Settings, metrics: Metrics, timestamps: dict[int, float]) -> None:
    """Wait until the ages are those of records of these times, within a second, and see that they stay so."""

    def error() -> float:
        now = time.time()
        ages = {partition: seconds(settings, metrics, partition) for partition in timestamps}
        return max(1e9 if age is None else abs(age - (now - timestamps[each])) for each, age in ages.items())

    wait_until(lambda: error() < 1)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert error() < 1
        time.sleep(0.05)


def committed(settings: Settings, metrics: Metrics) -> float:
    return value(metrics, "streamer_events_produced_total", topic=settings.topic(OUTPUT))


def test_at_load_the_brokers_figure_lies_between_ours_before_and_after(kafka: LocalKafka, settings: Settings) -> None:
    """While a backlog is worked off, lag only falls: what Kafka's tool says in between lies between two of ours."""
    feeder = Feeder(settings)
    ended = threading.Event()
    seen: list[dict[int, float]] = []

    def work(record: Record) -> Sequence[Output]:
        if record.offset:  # something of each partition is committed before it begins
            time.sleep(0.05 if record.partition % 2 else 0.2)
        return echo(settings)(record)

    with running(settings, work, max_records=100) as (metrics, _, _, _):
        for partition in range(12):
            feeder.produce(partition, 0)
        wait_until(lambda: committed(settings, metrics) == 12)
        for partition in range(12):
            feeder.produce(partition, *[0.0] * 40 * (partition + 1))

        def watch() -> None:
            while not ended.is_set():
                seen.append(lags(settings, metrics))
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            wait_until(lambda: committed(settings, metrics) > 40 and value(metrics, "streamer_paused_partitions") > 0)
            wait_until(lambda: len(seen[-1]) == 12 and sum(seen[-1].values()) > 1000)
            first = len(seen)
            wait_until(lambda: len(seen) > first + 20)
            told = brokers(kafka, settings)
            assert len(told) == 12
            wait_until(lambda: all(lies_between(told[each], [lag[each] for lag in seen[first:]]) for each in told))
        finally:
            ended.set()
            watcher.join(60)
    assert sum(lag or 0 for lag in told.values()) > 0


def lies_between(lag: int | None, ours: list[float]) -> bool:
    return lag is not None and min(ours) <= lag <= max(ours)


def test_idle_and_caught_up_all_figures_are_0_after_markers_and_aborted_records_too(
    kafka: LocalKafka, settings: Settings
) -> None:
    feeder = Feeder(settings, "feeder")
    feeder.producer.begin_transaction()
    for partition in range(4):
        feeder.produce(partition, 3600, 1800)
    feeder.producer.commit_transaction()
    feeder.producer.begin_transaction()
    for partition in range(2, 6):
        feeder.produce(partition, 3600, 1800, 900)
    feeder.producer.abort_transaction()
    with running(settings, echo(settings)) as (metrics, _, _, _):
        wait_until(lambda: committed(settings, metrics) == 8)
        await_equal(kafka, settings, metrics, wanted={})
        for partition in range(12):
            assert seconds(settings, metrics, partition) == 0


def test_after_a_rebalance_each_instance_reports_what_it_owns(kafka: LocalKafka, settings: Settings) -> None:
    quick = settings.model_copy(update={"drain_timeout": 0.4})
    feeder = Feeder(settings)
    for partition in range(12):
        feeder.produce(partition, 100)
    wanted = {partition: partition + 1 for partition in range(12)}
    gate = Gate(settings)
    gate.open()
    with running(quick, gate) as (first, _, _, _):
        wait_until(lambda: committed(settings, first) == 12)
        gate.shut()
        began = time.time()
        for partition in range(12):
            feeder.produce(partition, *[50.0] * (partition + 1))
        wait_until(lambda: lags(settings, first) == wanted)
        other = quick.model_copy(update={"instance_id": "two"})
        with running(other, gate) as (second, _, _, _):
            wait_until(lambda: len(lags(settings, first)) == len(lags(settings, second)) == 6)
            await_equal(kafka, settings, first, second, wanted=wanted)
            for metrics in (first, second):
                for partition in lags(settings, metrics):
                    assert 50 <= (seconds(settings, metrics, partition) or 0) <= 51 + time.time() - began
        await_equal(kafka, settings, first, wanted=wanted)
        gate.open()


def test_after_retention_has_deleted_unread_records(kafka: LocalKafka, settings: Settings) -> None:
    feeder = Feeder(settings)
    feeder.produce(0, *[500.0] * 10)
    feeder.produce(1, *[500.0] * 10)
    with running(settings, echo(settings)) as (metrics, _, _, _):
        wait_until(lambda: committed(settings, metrics) == 20)
    feeder.produce(0, *[400.0] * 30)
    left = feeder.produce(0, *[300.0] * 20)
    feeder.produce(1, *[400.0] * 50)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    topic = settings.topic(INPUT)
    deleted = admin.delete_records([TopicPartition(topic, 0, 40), TopicPartition(topic, 1, 60)])
    for each in deleted.values():
        each.result(30)
    gate = Gate(settings)
    with running(settings, gate) as (metrics, _, _, _):
        # The group's own offset stands at 10 until the first of the 20 that are left is done.
        wait_until(lambda: value(metrics, "streamer_in_flight_records") == 20)
        await_equal(kafka, settings, metrics, wanted={0: 50, 1: 50})
        await_ages(settings, metrics, {0: left})
        assert seconds(settings, metrics, 1) == 0
        gate.open()
        await_equal(kafka, settings, metrics, wanted={})


def test_a_new_group_and_one_whose_offsets_have_expired_lag_by_all_records(
    kafka: LocalKafka, settings: Settings
) -> None:
    feeder = Feeder(settings)
    oldest = feeder.produce(3, 7200, 30, 20)
    for expired in (False, True):
        gate = Gate(settings)
        with running(settings, gate) as (metrics, _, _, _):
            await_ages(settings, metrics, {3: oldest})
            assert lags(settings, metrics) == {partition: 3.0 * (partition == 3) for partition in range(12)}
            if expired:
                told = describe(kafka, settings.topic(GROUP))[3]
                assert (told.committed, told.end, told.lag) == (None, 3, None)
            gate.open()
            await_no_lag(settings, metrics)
            assert seconds(settings, metrics, 3) == 0
        if not expired:
            admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
            admin.delete_consumer_groups([settings.topic(GROUP)])[settings.topic(GROUP)].result(30)


def test_a_record_that_is_not_fetched_since_its_partition_is_paused_gives_its_own_age(
    kafka: LocalKafka, settings: Settings
) -> None:
    """Two records take the whole budget; what waits in the other partitions is in nobody's memory here."""
    feeder = Feeder(settings)
    gate = Gate(settings)
    gate.open()
    with running(settings.model_copy(update={"queue_bytes": 1 << 20}), gate) as (metrics, _, _, _):
        for partition in (1, 2):
            feeder.produce(partition, 100_000)
        wait_until(lambda: committed(settings, metrics) == 2)
        gate.shut()
        stuck = {partition: feeder.produce(partition, 9000, value=b" " * 600_000) for partition in (0, 3)}
        wait_until(lambda: value(metrics, "streamer_paused_partitions") == 12)
        first = feeder.produce(1, 5000, 4000)
        second = feeder.produce(2, 0)
        await_ages(settings, metrics, {**stuck, 1: first, 2: second})
        assert seconds(settings, metrics, 4) == 0
        wanted = {1: 2, 2: 1}
        assert {number: lag for number, lag in lags(settings, metrics).items() if lag} == {0: 1, 3: 1, **wanted}
        assert {
            number: lag for number, lag in brokers(kafka, settings).items() if lag
        } == wanted  # of others none is committed
        gate.open()
        await_equal(kafka, settings, metrics, wanted={})


def test_records_of_an_open_transaction_are_counted_and_have_no_age_before_they_can_be_read(
    kafka: LocalKafka, settings: Settings
) -> None:
    Feeder(settings).produce(5, 10)
    feeder = Feeder(settings, "feeder")
    with running(settings, echo(settings)) as (metrics, _, _, _):
        wait_until(lambda: committed(settings, metrics) == 1)
        feeder.producer.begin_transaction()
        feeder.produce(5, 700, 600)
        await_equal(kafka, settings, metrics, wanted={5: 2})
        wait_until(lambda: seconds(settings, metrics, 5) == 0)
        feeder.producer.commit_transaction()
        await_equal(kafka, settings, metrics, wanted={})
