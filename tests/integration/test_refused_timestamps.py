"""A topic that refuses our records' timestamps, as it does where a host's clock is off: waited out, and named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient

from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.settings import Settings, load
from streamer.topology import RERANK
from tests.support.configs import alter_config
from tests.support.loops import OUTPUT, echo, feed, read, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.local_kafka.broker import LocalKafka

ANY = "9223372036854775807"


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix, "instance_id": "one"})
    apply(made, load_specs())
    return made


@contextmanager
def nothing_is_young_enough(settings: Settings) -> Iterator[None]:
    """Let the output refuse every record that did not come within its own millisecond, its own markers among them."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    limit = partial(alter_config, admin, settings.topic(OUTPUT), "message.timestamp.before.max.ms")
    limit("0")
    try:
        yield
    finally:
        limit(ANY)


@pytest.mark.parametrize("producers", [1, 3])
def test_refused_timestamps_are_named_and_once_they_are_taken_everything_comes_out_once(
    settings: Settings, producers: int
) -> None:
    service = dataclasses.replace(RERANK, producers=producers)
    expected = Counter(f"q{number}".encode() for number in range(20))
    with running(settings, echo(settings), service=service) as (metrics, health, _, ended):
        wait_until(lambda: all(each.startswith("start:") for each in health.readiness_problems()))
        with nothing_is_young_enough(settings):
            feed(settings, 20)
            wait_until(
                lambda: any(
                    f"{settings.topic(OUTPUT)} refuses the timestamps" in each for each in health.readiness_problems()
                )
            )
            # Each of the producers has met it, and the first one once more.
            wait_until(lambda: value(metrics, "streamer_transactions_total", outcome="aborted") > producers)
        wait_until(lambda: len(read(settings, OUTPUT)) == len(expected), seconds=15)
        wait_until(lambda: all(each.startswith("start:") for each in health.readiness_problems()))
    assert ended == [True]
    assert Counter(record.key for record in read(settings, OUTPUT)) == expected


def test_a_restart_goes_on_though_the_coordinator_refuses_the_ids_of_before(settings: Settings) -> None:
    expected = Counter(f"q{number}".encode() for number in range(10))
    hasty = settings.model_copy(update={"drain_timeout": 0.5})
    with running(hasty, echo(settings)) as (metrics, health, _, _):
        wait_until(lambda: all(each.startswith("start:") for each in health.readiness_problems()))
        with nothing_is_young_enough(settings):
            feed(settings, 10)
            wait_until(lambda: value(metrics, "streamer_transactions_total", outcome="aborted") > 3)
    with running(settings, echo(settings)) as (_, _, _, ended):
        wait_until(lambda: len(read(settings, OUTPUT)) == len(expected), seconds=45)
    assert ended == [True]
    assert Counter(record.key for record in read(settings, OUTPUT)) == expected
