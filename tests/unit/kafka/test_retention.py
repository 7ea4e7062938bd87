"""Outputs whose time is so old that their topic would soon delete them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from streamer.kafka import Output
from streamer.kafka.outputs import UNKNOWN_RETENTION_MS, kept_ms, leaves_time
from tests.support.fake_kafka import DEAD, INPUT, OUTPUT, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.kafka import Record
    from tests.support.fake_kafka import FakeKafka

HOUR_S = 3_600
DAY_S = 24 * HOUR_S


@pytest.mark.parametrize(
    ("policy", "limit", "kind", "expected"),
    [
        ("delete", "86400000", "CreateTime", 86_400_000.0),
        ("compact,delete", "1000", "CreateTime", 1_000.0),
        ("delete", "-1", "CreateTime", math.inf),
        ("compact", "86400000", "CreateTime", math.inf),
        ("delete", "86400000", "LogAppendTime", math.inf),
    ],
)
def test_the_time_for_which_a_topic_keeps_records_follows_from_its_configuration(
    policy: str, limit: str, kind: str, expected: float
) -> None:
    values = {"cleanup.policy": policy, "retention.ms": limit, "message.timestamp.type": kind}
    assert kept_ms(cast("Any", {name: SimpleNamespace(value=value) for name, value in values.items()})) == expected


@pytest.mark.parametrize(
    ("age", "kept", "expected"), [(499, 1_000, True), (500, 1_000, False), (10**15, math.inf, True)]
)
def test_at_least_half_of_the_retention_must_be_left(age: int, kept: float, *, expected: bool) -> None:
    assert leaves_time(10**16 - age, kept, 10**16) is expected


def answering(fake: FakeKafka, *ages_s: float) -> Instance:
    """Return an instance whose outputs have these ages, by the offsets of their inputs; each has a dead letter, too."""

    def work(record: Record) -> list[Output]:
        at = fake.clock.time() - ages_s[record.offset]
        return [Output(OUTPUT, record.key, record.value, (), timestamp=round(at * 1_000)), Output(DEAD, b"d", b"", ())]

    return Instance(fake, work=work)


def ages(fake: FakeKafka) -> list[int]:
    """Return how old the outputs are by their own times, in hours."""
    return [round((fake.clock.time() - entry.at) / HOUR_S) for entry in fake.cluster.read(OUTPUT)]


def retimed(one: Instance) -> float:
    return one.value("streamer_outputs_retimed_total", topic=OUTPUT, reason="retention")


def told(logs: list[Any]) -> list[str]:
    """Return the levels of what was logged about it."""
    return [each["log_level"] for each in logs if "retention" in each["event"]]


def test_outputs_that_would_soon_be_deleted_get_the_current_time_and_are_counted(fake: FakeKafka) -> None:
    fake.cluster.topics[OUTPUT].config["retention.ms"] = str(DAY_S * 1_000)
    fake.cluster.publish(INPUT, b"0", b"1", b"2", b"3")
    one = answering(fake, HOUR_S, 11 * HOUR_S, 13 * HOUR_S, 9 * DAY_S)
    with capture_logs() as logs:
        one.run_until_caught_up()
    assert ages(fake) == [1, 11, 0, 0]
    assert retimed(one) == 2
    assert len(fake.outputs(DEAD)) == 4
    assert told(logs) == ["warning"]


def test_a_topic_that_keeps_everything_takes_any_time(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"0")
    one = answering(fake, 9 * DAY_S)
    with capture_logs() as logs:
        one.run_until_caught_up()
    assert ages(fake) == [9 * 24]
    assert (retimed(one), told(logs)) == (0, [])


def test_one_day_is_assumed_where_the_configuration_may_not_be_described(fake: FakeKafka) -> None:
    assert UNKNOWN_RETENTION_MS == DAY_S * 1_000
    fake.cluster.denied.add(("topic-config", OUTPUT))
    fake.cluster.publish(INPUT, b"0", b"1")
    one = answering(fake, HOUR_S, 13 * HOUR_S)

    def story() -> Iterator[None]:
        yield from until(one.is_caught_up)
        yield from nothing_happens(fake, 130)

    with capture_logs() as logs:
        assert one.run(story())
    assert ages(fake) == [1, 0]
    assert retimed(one) == 1
    assert sorted(told(logs)) == ["info", "warning"]


def test_a_retention_that_is_changed_is_noticed_within_a_minute(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"0")
    one = answering(fake, 9 * DAY_S, 9 * DAY_S)

    def story() -> Iterator[None]:
        yield from until(one.is_caught_up)
        fake.cluster.topics[OUTPUT].config["retention.ms"] = str(DAY_S * 1_000)
        yield from nothing_happens(fake, 65)
        fake.cluster.publish(INPUT, b"1")
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert ages(fake) == [9 * 24, 0]
    assert retimed(one) == 1
