"""No fault that stays is silent: /readyz or an alert names it within 30 seconds, each caused alone and measured.

A loop runs with its own endpoints, which are asked as a kubelet asks; a real Prometheus scrapes them, with our rules as
they are, each second. The intervals of ``deploy/prometheus/prometheus.yml`` are added to the time until an alert fires.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml
from confluent_kafka.admin import AdminClient

from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.client.acls import ROLES, Operation
from streamer.local_kafka.broker import LocalKafka
from streamer.metrics import Metrics
from streamer.settings import Settings, load
from streamer.topology import DLQ_SUFFIX, RERANK
from tests.support import lasting_faults as faults
from tests.support.dashboards import RULES
from tests.support.loops import INPUT, OUTPUT, Running, echo, running
from tests.support.monitored import Prometheus
from tests.support.outside import create_again
from tests.support.secured import SecuredKafka, secured_kafka
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Output, Record

LIMIT_S = 30.0
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


@dataclass(frozen=True)
class Case:
    """A fault and how it must show: a text in the body of /readyz, or the name of an alert."""

    fault: Callable[[faults.Scene], object]
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


CASES = [
    Case(faults.offset_beyond_the_end, alert="StreamerLogReset"),
    Case(faults.commit_of_another_log, alert="StreamerLogReset", full=True),
    Case(faults.commit_by_mirror_maker, alert="StreamerLogReset", full=True),
    Case(faults.input_created_again, alert="StreamerTopicRecreated"),
    Case(faults.output_created_again, alert="StreamerTopicRecreated", full=True),
    Case(faults.output_missing, told="topic: {output} does not exist"),
    Case(faults.partitions_added, told="partitions: {input} has 1, {output} 2", full=True),
    Case(faults.bomb, told="unreadable: {input}[0] stands at offset 0"),
    Case(faults.timestamps_refused, told="transactions: {output} refuses the timestamps"),
    Case(
        faults.upstream_transaction_open,
        told="open transaction upstream: nothing is readable from {input}[0] at offset 0",
    ),
    Case(faults.output_limit_lowered, told="last dead letter: {input}[0]@0: too_large"),
    Case(faults.too_few_in_sync, told="topic: {output}[0] takes no writes", properties=(), brokers=3, full=True),
    Case(faults.brokers_gone, told="topic: no broker has described {input}", properties=(), brokers=3, full=True),
    Case(faults.retention, alert="StreamerRetentionLoss", full=True),
    Case(faults.quota, told="throttled: ", full=True),
    Case(faults.nothing, told="position: {input}[0]", kafka=(("auto.offset.reset", "error"),), full=True),
    Case(
        faults.records,
        alert="StreamerCommitMetadataRefused",
        properties=(("offset.metadata.max.bytes", "0"),),
        work=faults.first_is_slow,
        full=True,
    ),
    Case(faults.damaged_batch, told="unreadable: {input}[0] stands at offset 0", properties=(), full=True),
    Case(faults.broker_killed, told="broker: no broker", properties=(), full=True),
    Case(faults.broker_hangs, told="topic: no broker has described {input}", properties=(), full=True),
    Case(faults.log_lost, alert="StreamerLogReset", properties=(), full=True),
    Case(faults.nothing, told="authentication: ", kafka=(("sasl.password", "another"),), secured=True, full=True),
    *(
        Case(faults.without(each), told=f"lacks {each.operation} on the {each.resource}", secured=True, full=True)
        for each in ROLES[RERANK.role]
        if not each.name.endswith(DLQ_SUFFIX) and each.operation is not Operation.DESCRIBE_CONFIGS
    ),
]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as broker:
        broker.add_user(faults.USER)
        yield broker


def secured_scene(secured: SecuredKafka, prefix: str, folder: Path, case: Case) -> faults.Scene:
    """Return a scene in which the service is a user with exactly the privileges that it needs."""
    operator = secured.operator(prefix)
    apply(operator, load_specs())
    for topic in (INPUT, OUTPUT):
        create_again(operator, topic)
    secured.grant(faults.USER, prefix, ROLES[RERANK.role])
    settings = secured.settings(faults.USER, prefix)
    settings = settings.model_copy(update={"kafka": {**settings.kafka, **dict(case.kafka)}})
    admin = AdminClient({"bootstrap.servers": operator.bootstrap_servers})
    return faults.Scene(secured.broker, settings, folder, admin, secured)


def scene_on(broker: LocalKafka, prefix: str, folder: Path, case: Case) -> faults.Scene:
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
    return faults.Scene(broker, settings, folder, AdminClient({"bootstrap.servers": broker.bootstrap_servers}))


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
