"""What the clients say of themselves: readiness and gauges."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from streamer.events import Reason
from streamer.health import Health
from streamer.kafka import InFlightRecord, Record
from streamer.kafka.inflight.partitions import Assignment
from streamer.kafka.watch.monitor import Monitor
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import error
from tests.support.fake_kafka import INPUT, OUTPUT

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka

AT = dt.datetime(2026, 9, 21, tzinfo=dt.UTC)


class Case:
    """A monitor of an instance without partitions."""

    def __init__(self, fake: FakeKafka) -> None:
        self.fake = fake
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.assignment = Assignment(max_records=2, max_bytes=1 << 30)
        self.passed_on: list[Any] = []
        self.monitor = Monitor(
            load({}),
            self.assignment,
            service=RERANK,
            metrics=self.metrics,
            health=self.health,
            on_partitions=self.passed_on.append,
            generation=lambda: -1,
        )

    def statistics(self, *, state: str = "UP", node: int = 1, partitions: tuple[int, ...] = ()) -> None:
        text: dict[str, Any] = {
            "brokers": {"b": {"state": state, "nodeid": node}},
            "topics": {INPUT: {"partitions": {str(number): {} for number in (-1, *partitions)}}} if partitions else {},
        }
        self.monitor.on_statistics(orjson.dumps(text).decode())

    def waits_for(self, condition: str) -> str | None:
        return next((each for each in self.health.readiness_problems() if each.startswith(condition)), None)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    return Case(fake)


def test_readiness_waits_for_a_broker_and_for_partitions_from_the_start(case: Case) -> None:
    assert case.waits_for("broker") == "broker: no response yet from localhost:9092"
    assert case.waits_for("assignment") is not None


def test_counters_are_exposed_with_0_from_the_start(case: Case) -> None:
    assert case.value("streamer_events_consumed_total", topic=INPUT) == 0
    assert case.value("streamer_events_produced_total", topic=OUTPUT) == 0
    for reason in Reason:
        assert case.value("streamer_events_dead_lettered_total", topic=INPUT, reason=reason) == 0
    for kind in ("assigned", "revoked", "lost"):
        assert case.value("streamer_rebalances_total", kind=kind) == 0


def test_a_broker_that_is_up_makes_it_ready(case: Case) -> None:
    case.statistics()
    assert case.waits_for("broker") is None


@pytest.mark.parametrize(("state", "node"), [("DOWN", 1), ("CONNECT", 1), ("UP", -1)])
def test_a_bootstrap_or_unestablished_connection_does_not_make_it_ready(case: Case, state: str, node: int) -> None:
    case.statistics(state=state, node=node)
    assert case.waits_for("broker") is not None


def test_when_all_brokers_are_down_it_is_unready_until_one_is_up(case: Case) -> None:
    case.statistics()
    case.monitor.on_error(error(KafkaError._ALL_BROKERS_DOWN))
    assert case.waits_for("broker") == "broker: no broker of localhost:9092 is reachable"
    case.statistics()
    assert case.waits_for("broker") is None


@pytest.mark.parametrize("code", [KafkaError._AUTHENTICATION, KafkaError._SSL])
def test_refused_credentials_are_reported_until_a_broker_is_up(case: Case, code: int) -> None:
    case.monitor.on_error(KafkaError(code, "wrong password"))
    assert case.waits_for("authentication") == "authentication: wrong password"
    case.statistics()
    assert case.waits_for("authentication") is None


def test_an_error_that_repeats_is_logged_once_a_minute_for_each_kind(case: Case) -> None:
    with capture_logs() as logs:
        for second in range(130):
            case.monitor.on_error(error(KafkaError._TRANSPORT))
            if second < 2:
                case.monitor.on_error(error(KafkaError._RESOLVE))
            case.fake.clock.sleep(1)
    assert [each["code"] for each in logs] == ["_TRANSPORT", "_RESOLVE", "_TRANSPORT", "_TRANSPORT"]


def test_partitions_of_the_topic_are_counted_without_the_clients_own(case: Case) -> None:
    case.statistics(partitions=(0, 1, 2))
    assert case.value("streamer_topic_partitions", topic=INPUT) == 3
    case.statistics()
    assert case.value("streamer_topic_partitions", topic=INPUT) == 0
    assert [sorted(each) for each in case.passed_on] == [["-1", "0", "1", "2"], []]


def test_gauges_show_what_is_assigned_paused_and_in_flight(case: Case) -> None:
    case.assignment.add(INPUT, 0, "log-0")
    case.assignment.add(INPUT, 1, "log-1")
    partition = case.assignment.get(0)
    assert partition is not None
    record = Record(INPUT, 0, 0, b"k", b"x" * 1_000, (), AT)
    partition.add(InFlightRecord(record, lambda: None))
    case.assignment.flow_changes()
    case.monitor.measure()
    assert case.value("streamer_assigned_partitions") == 2
    assert case.value("streamer_paused_partitions") == 1
    assert case.value("streamer_in_flight_records") == 1
    assert case.value("streamer_in_flight_bytes") == record.size
