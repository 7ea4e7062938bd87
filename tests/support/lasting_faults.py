"""Faults of topics, offsets, brokers and privileges that last, each to be caused alone beside a running service."""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.kafka.inflight.offsets import Progress
from streamer.topology import RERANK
from tests.support.configs import alter_config
from tests.support.kafka_tools import run_tool
from tests.support.loops import INPUT, OUTPUT, echo, feed, running
from tests.support.outside import commit, create_again
from tests.support.processes import frozen
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Output, Record
    from streamer.kafka.client.acls import Privilege
    from streamer.local_kafka.broker import LocalKafka
    from streamer.settings import Settings
    from tests.support.secured import SecuredKafka

_SLOW_S = 30.0
USER = "one"
"""The service's name where it is a user; its instance id too."""


@dataclass
class Scene:
    """A broker, the settings of a service on it, and what a fault is done with."""

    broker: LocalKafka
    settings: Settings
    folder: Path
    admin: AdminClient
    secured: SecuredKafka | None = None
    """The same broker where the service is a user with privileges."""

    @property
    def input(self) -> str:
        return self.settings.topic(INPUT)

    @property
    def output(self) -> str:
        return self.settings.topic(OUTPUT)

    @contextmanager
    def altered(self, topic: str, key: str, value: str) -> Iterator[None]:
        alter = partial(alter_config, self.admin, topic, key)
        alter(value)
        try:
            yield
        finally:
            alter(None)


# -- the faults: each leaves what must be named --------------------------------------------------------------------


def offset_beyond_the_end(scene: Scene) -> None:
    commit(scene.settings, 1_000)


def commit_of_another_log(scene: Scene) -> None:
    commit(scene.settings, 5, Progress(5).metadata("AAAAAAAAAAAAAAAAAAAAAA-0"))


def commit_by_mirror_maker(scene: Scene) -> None:
    commit(scene.settings, 5, Progress(40, frozenset({42})).metadata("AAAAAAAAAAAAAAAAAAAAAA-0"))


@contextmanager
def input_created_again(scene: Scene) -> Iterator[None]:
    create_again(scene.settings, INPUT)
    yield


@contextmanager
def output_created_again(scene: Scene) -> Iterator[None]:
    create_again(scene.settings, OUTPUT)
    yield


@contextmanager
def output_missing(scene: Scene) -> Iterator[None]:
    scene.admin.delete_topics([scene.output])[scene.output].result(30)
    yield


@contextmanager
def partitions_added(scene: Scene) -> Iterator[None]:
    scene.admin.create_partitions([NewPartitions(scene.output, 2)])[scene.output].result(30)
    yield


@contextmanager
def bomb(scene: Scene) -> Iterator[None]:
    """A few kB that decompress to more than any buffer of ours holds."""
    limits = {"message.max.bytes": 100 << 20, "compression.type": "zstd"}
    producer = Producer({"bootstrap.servers": scene.broker.bootstrap_servers, **limits})
    producer.produce(scene.input, bytes(32 << 20))
    assert producer.flush(30) == 0
    yield


@contextmanager
def timestamps_refused(scene: Scene) -> Iterator[None]:
    with scene.altered(scene.output, "message.timestamp.before.max.ms", "0"):
        feed(scene.settings, 5)
        yield


@contextmanager
def upstream_transaction_open(scene: Scene) -> Iterator[None]:
    identity = f"{scene.settings.topic_prefix}upstream"
    upstream = Producer({"bootstrap.servers": scene.broker.bootstrap_servers, "transactional.id": identity})
    upstream.init_transactions(60)
    upstream.begin_transaction()
    upstream.produce(scene.input, b"{}")
    upstream.flush(10)
    try:
        yield
    finally:
        upstream.abort_transaction(10)


@contextmanager
def output_limit_lowered(scene: Scene) -> Iterator[None]:
    with scene.altered(scene.output, "max.message.bytes", "70"):
        feed(scene.settings, 1)
        yield


@contextmanager
def too_few_in_sync(scene: Scene) -> Iterator[None]:
    """One broker of three is gone, and all three must have what is written."""
    alter_config(scene.admin, scene.output, "min.insync.replicas", "3")
    scene.broker.kill(2)
    yield


@contextmanager
def brokers_gone(scene: Scene) -> Iterator[None]:
    """Two brokers of three hang, with them the controllers; the third takes requests."""
    with frozen(scene.broker.pid(number) for number in (1, 2)):
        yield


def retention(scene: Scene) -> None:
    """Delete what a stopped service had not read."""
    feed(scene.settings, 10)
    commit(scene.settings, 2)
    place = TopicPartition(scene.input, 0, 8)
    scene.admin.delete_records([place])[place].result(30)


@contextmanager
def quota(scene: Scene) -> Iterator[None]:
    name = f"{scene.settings.group(RERANK.group)}-one"
    rates = "producer_byte_rate=1000,consumer_byte_rate=1000"
    tool = ("org.apache.kafka.tools.ConfigCommand", "--bootstrap-server", scene.broker.bootstrap_servers, "--alter")
    entity = ("--entity-type", "clients", "--entity-name", name)
    run_tool(*tool, "--add-config", rates, *entity)
    try:
        feed(scene.settings, 200, size=1_000)
        yield
    finally:
        run_tool(*tool, "--delete-config", "producer_byte_rate,consumer_byte_rate", *entity)


@contextmanager
def damaged_batch(scene: Scene) -> Iterator[None]:
    """A record that claims to be longer than its batch: the client says nothing of it."""
    feed(scene.settings, 3)
    [segment] = scene.folder.rglob(f"{scene.input}-0/00000000000000000000.log")
    with segment.open("r+b") as file:
        file.seek(61)
        file.write(b"\xff\x7f")
    yield


@contextmanager
def broker_killed(scene: Scene) -> Iterator[None]:
    scene.broker.kill(0)
    yield


@contextmanager
def broker_hangs(scene: Scene) -> Iterator[None]:
    """It takes requests and answers none; nothing is in flight that would have to be committed."""
    with frozen([scene.broker.pid(0)]):
        yield


def log_lost(scene: Scene) -> None:
    feed(scene.settings, 5)
    with running(scene.settings, echo(scene.settings)) as (metrics, *_):
        produced = {"topic": scene.output}
        wait_until(lambda: metrics.registry.get_sample_value("streamer_events_produced_total", produced) == 5)
    scene.broker.stop()
    [partition] = scene.folder.glob(f"**/{scene.input}-0")
    shutil.rmtree(partition)
    scene.broker.start()


def first_is_slow(settings: Settings) -> Callable[[Record], Sequence[Output]]:
    """Keep the first record for a while, so that the others are completed before it."""
    until = time.monotonic() + _SLOW_S

    def work(record: Record) -> Sequence[Output]:
        while record.offset == 0 and time.monotonic() < until:
            time.sleep(0.1)
        return echo(settings)(record)

    return work


def without(privilege: Privilege) -> Callable[[Scene], AbstractContextManager[None]]:
    """Return the fault that a privilege is taken away while there is something to do."""

    @contextmanager
    def revoked(scene: Scene) -> Iterator[None]:
        assert scene.secured is not None
        prefix = scene.settings.topic_prefix
        scene.secured.revoke(USER, prefix, privilege)
        feed(scene.secured.operator(prefix), 5)
        yield

    revoked.__name__ = f"without_{privilege.operation}_on_{privilege.name}"
    return revoked


def nothing(_: Scene) -> None:
    """Leave everything as it is: it is wrong already."""


@contextmanager
def records(scene: Scene) -> Iterator[None]:
    feed(scene.settings, 20)
    yield
