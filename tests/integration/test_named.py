"""No fault that stays is silent: /readyz or an alert names it within 30 seconds, each caused alone and measured.

A loop runs with its own endpoints, which are asked as a kubelet asks; a real Prometheus scrapes them, with our rules as
they are, each second. The intervals of ``deploy/prometheus/prometheus.yml`` are added to the time until an alert fires.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
import yaml
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.client.acls import ROLES, Operation
from streamer.kafka.inflight.offsets import Progress
from streamer.local_kafka.broker import LocalKafka
from streamer.metrics import Metrics
from streamer.settings import Settings, load
from streamer.topology import DLQ_SUFFIX, RERANK
from tests.support.configs import alter_config
from tests.support.dashboards import RULES
from tests.support.kafka_tools import run_tool
from tests.support.loops import INPUT, OUTPUT, Running, echo, feed, running
from tests.support.monitored import Prometheus
from tests.support.outside import commit, create_again
from tests.support.secured import SecuredKafka, secured_kafka
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Output, Record
    from streamer.kafka.client.acls import Privilege

LIMIT_S = 30.0
USER = "one"
"""The service's name where it is a user; its instance id too."""
IN_FULL = os.environ.get("NAMED") == "all"
"""`make named` sets it: the faults of which each takes long, or a broker of its own, as well."""
_DEPLOYED = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())["global"]
INTERVALS_S = sum(float(_DEPLOYED[each].removesuffix("s")) for each in ("scrape_interval", "evaluation_interval"))


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def prometheus(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus") / "served"
    with Prometheus(folder, {"streamer-rerank": [port]}, rules=RULES.read_text()) as served:
        yield served


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
    pids = [scene.broker.pid(number) for number in (1, 2)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


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
    pid = scene.broker.pid(0)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


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
    until = time.monotonic() + LIMIT_S

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


@dataclass(frozen=True)
class Case:
    """A fault and how it must show: a text in the body of /readyz, or the name of an alert."""

    fault: Callable[[Scene], object]
    """A context of a running service, or what is done before one starts."""
    told: str = ""
    alert: str = ""
    full: bool = False
    """Whether it takes long, or a broker of its own."""
    kafka: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, str], ...] | None = None
    """Of a broker of its own, where it has one."""
    secured: bool = False
    brokers: int = 1
    work: Callable[[Settings], Callable[[Record], Sequence[Output]]] = echo


def nothing(_: Scene) -> None:
    """Leave everything as it is: it is wrong already."""


@contextmanager
def records(scene: Scene) -> Iterator[None]:
    feed(scene.settings, 20)
    yield


CASES = [
    Case(offset_beyond_the_end, alert="StreamerLogReset"),
    Case(commit_of_another_log, alert="StreamerLogReset", full=True),
    Case(commit_by_mirror_maker, alert="StreamerLogReset", full=True),
    Case(input_created_again, alert="StreamerTopicRecreated"),
    Case(output_created_again, alert="StreamerTopicRecreated", full=True),
    Case(output_missing, told="topic: {output} does not exist"),
    Case(partitions_added, told="partitions: {input} has 1, {output} 2", full=True),
    Case(bomb, told="unreadable: {input}[0] stands at offset 0"),
    Case(timestamps_refused, told="transactions: {output} refuses the timestamps"),
    Case(upstream_transaction_open, told="open transaction upstream: nothing is readable from {input}[0] at offset 0"),
    Case(output_limit_lowered, told="last dead letter: {input}[0]@0: too_large"),
    Case(too_few_in_sync, told="topic: {output}[0] takes no writes", properties=(), brokers=3, full=True),
    Case(brokers_gone, told="topic: no broker has described {input}", properties=(), brokers=3, full=True),
    Case(retention, alert="StreamerRetentionLoss", full=True),
    Case(quota, told="throttled: ", full=True),
    Case(nothing, told="position: {input}[0]", kafka=(("auto.offset.reset", "error"),), full=True),
    Case(
        records,
        alert="StreamerCommitMetadataRefused",
        properties=(("offset.metadata.max.bytes", "0"),),
        work=first_is_slow,
        full=True,
    ),
    Case(damaged_batch, told="unreadable: {input}[0] stands at offset 0", properties=(), full=True),
    Case(broker_killed, told="broker: no broker", properties=(), full=True),
    Case(broker_hangs, told="topic: no broker has described {input}", properties=(), full=True),
    Case(log_lost, alert="StreamerLogReset", properties=(), full=True),
    Case(nothing, told="authentication: ", kafka=(("sasl.password", "another"),), secured=True, full=True),
    *(
        Case(without(each), told=f"lacks {each.operation} on the {each.resource}", secured=True, full=True)
        for each in ROLES[RERANK.role]
        if not each.name.endswith(DLQ_SUFFIX) and each.operation is not Operation.DESCRIBE_CONFIGS
    ),
]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as broker:
        broker.add_user(USER)
        yield broker


def secured_scene(secured: SecuredKafka, prefix: str, folder: Path, case: Case) -> Scene:
    """Return a scene in which the service is a user with exactly the privileges that it needs."""
    operator = secured.operator(prefix)
    apply(operator, load_specs())
    for topic in (INPUT, OUTPUT):
        create_again(operator, topic)
    secured.grant(USER, prefix, ROLES[RERANK.role])
    settings = secured.settings(USER, prefix)
    settings = settings.model_copy(update={"kafka": {**settings.kafka, **dict(case.kafka)}})
    admin = AdminClient({"bootstrap.servers": operator.bootstrap_servers})
    return Scene(secured.broker, settings, folder, admin, secured)


def scene_on(broker: LocalKafka, prefix: str, folder: Path, case: Case) -> Scene:
    # Small buffers, so that a batch that none holds is cheap to make.
    limits = {"receive.message.max.bytes": "4000000", "fetch.max.bytes": "2000000"}
    settings = load(
        {
            "bootstrap_servers": broker.bootstrap_servers,
            "topic_prefix": prefix,
            "instance_id": "one",
            "kafka": {**limits, **dict(case.kafka)},
            "max_batch_bytes": 1 << 20,
        }
    )
    apply(settings, load_specs())
    for topic in (INPUT, OUTPUT):
        create_again(settings, topic, replicas=case.brokers)
    return Scene(broker, settings, folder, AdminClient({"bootstrap.servers": broker.bootstrap_servers}))


@pytest.mark.parametrize(
    "case", [case for case in CASES if IN_FULL or not case.full], ids=lambda case: case.fault.__name__
)
def test_a_fault_that_stays_is_named_within_30_seconds(
    case: Case,
    kafka: LocalKafka,
    topic_prefix: str,
    tmp_path: Path,
    port: int,
    prometheus: Prometheus,
    request: pytest.FixtureRequest,
) -> None:
    with ExitStack() as stack:
        own = case.properties
        broker = kafka
        if own is not None:
            broker = stack.enter_context(LocalKafka(data_dir=tmp_path, properties=dict(own), brokers=case.brokers))
        if case.secured:
            scene = secured_scene(request.getfixturevalue("secured"), topic_prefix, tmp_path, case)
        else:
            scene = scene_on(broker, topic_prefix, tmp_path, case)
        names = {"input": scene.input, "output": scene.output}
        group = scene.settings.group(RERANK.group)

        def is_named() -> bool:
            if case.alert:
                return any(
                    each["labels"]["alertname"] == case.alert and each["labels"]["group"] == group
                    for each in prometheus.ask("alerts")["alerts"]
                    if each["state"] == "firing"
                )
            return any(case.told.format(**names) in line for line in readyz(port).splitlines())

        is_context = hasattr(case.fault, "__wrapped__")
        if not is_context:
            case.fault(scene)
        began = time.monotonic()
        stack.enter_context(served(scene.settings, case, port))
        if is_context:
            wait_until(lambda: readyz(port).splitlines()[:1] == ["ok"], lambda: readyz(port))
            # Until a series has been scraped, nothing can increase.
            wait_until(lambda: prometheus.query(f'streamer_ready{{group="{group}"}} == 1'))
            assert not is_named()
            began = time.monotonic()
            stack.enter_context(case.fault(scene))  # type: ignore[arg-type]
        wait_until(is_named, lambda: f"{case}; /readyz: {readyz(port)}", seconds=LIMIT_S)
        took = time.monotonic() - began + (INTERVALS_S if case.alert else 0)
    sys.stdout.write(f"\n{case.fault.__name__}: {case.alert or '/readyz'} after {took:.1f} s\n")
    # Among other tests a machine may be busy, and then only that it is named counts.
    assert took < LIMIT_S or not IN_FULL


@contextmanager
def served(settings: Settings, case: Case, port: int) -> Iterator[Running]:
    """Run a loop whose probes and metrics are served as a service's are."""
    metrics = Metrics(settings.group(RERANK.group))
    health = Health(metrics)
    health.ready("start")
    endpoints = Endpoints(health, metrics, host="127.0.0.1", port=port)
    try:
        with running(settings, case.work(settings), metrics=metrics, health=health) as loop:
            yield loop
    finally:
        endpoints.close()


def readyz(port: int) -> str:
    """Return the body of /readyz, whatever its status."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
