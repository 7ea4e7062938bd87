"""The local Kafka: its promises to the demo, the tests and ``streamer broker``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from streamer.local_kafka import startup
from streamer.local_kafka.broker import HOST, BrokerError, LocalKafka
from streamer.local_kafka.jvm import java_command
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

OWNER = """
import time
from streamer.local_kafka.broker import LocalKafka
kafka = LocalKafka()
kafka.start()
print("owner of", kafka.pid(0), kafka.bootstrap_servers, flush=True)
time.sleep(600)
"""


def create_topic(servers: str, name: str, replicas: int = 1) -> AdminClient:
    admin = AdminClient({"bootstrap.servers": servers})
    topic = NewTopic(name, num_partitions=1, replication_factor=replicas)
    for future in admin.create_topics([topic]).values():
        future.result(timeout=30)
    return admin


def produce(servers: str, topic: str, *values: bytes, abort: bool = False) -> None:
    producer = Producer({"bootstrap.servers": servers, "transactional.id": f"{topic}-writer"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    if abort:
        producer.flush(30)
        producer.abort_transaction(30)
    else:
        producer.commit_transaction(30)


def consume(servers: str, topic: str, count: int) -> list[bytes | None]:
    """Read ``count`` committed records through a group of the new (KIP-848) protocol."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"{topic}-readers",
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    try:
        consumer.subscribe([topic])
        values: list[bytes | None] = []
        deadline = time.monotonic() + 30
        while len(values) < count and time.monotonic() < deadline:
            messages = consumer.consume(count - len(values), timeout=0.5)
            values.extend(message.value() for message in messages if message.error() is None)
        return values
    finally:
        consumer.close()


def is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_committed_transactions_are_read_and_aborted_ones_are_not(kafka: LocalKafka, topic_prefix: str) -> None:
    topic = topic_prefix + "events"
    create_topic(kafka.bootstrap_servers, topic)
    produce(kafka.bootstrap_servers, topic, b"aborted", abort=True)
    produce(kafka.bootstrap_servers, topic, b"one", b"two")
    assert consume(kafka.bootstrap_servers, topic, 2) == [b"one", b"two"]


def test_topics_are_created_by_those_who_mean_to_only(kafka: LocalKafka, topic_prefix: str) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.timeout.ms": 1000})
    errors: list[object] = []
    producer.produce(topic_prefix + "misspelt", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(10)
    topics = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics
    assert [error is None for error in errors] == [False]
    assert topic_prefix + "misspelt" not in topics


def test_the_local_broker_listens_on_the_loopback_interface_only(kafka: LocalKafka) -> None:
    port = int(kafka.bootstrap_servers.rpartition(":")[2])
    with socket.create_server(("127.0.0.2", port)) as other_address:
        assert other_address.getsockname() == ("127.0.0.2", port)


def test_data_survives_a_crash_and_a_second_cluster_on_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "kafka data"
    # It is let in again only when the session of the one that was killed has run out.
    properties = {"log.retention.hours": "7", "broker.session.timeout.ms": "3000"}
    with LocalKafka(data_dir=folder, properties=properties) as first:
        admin = create_topic(first.bootstrap_servers, "events")
        produce(first.bootstrap_servers, "events", b"one")
        crashed = first.pid(0)
        first.kill(0)
        assert not is_listening(first.bootstrap_servers)
        with pytest.raises(BrokerError, match="broker 0 is not running"):
            first.pid(0)
        first.restart(0)
        assert first.pid(0) != crashed
        produce(first.bootstrap_servers, "events", b"two")
        retention = next(iter(admin.describe_configs([ConfigResource("broker", "0")]).values())).result(30)
        assert retention["log.retention.hours"].value == "7"
    assert not is_listening(first.bootstrap_servers)

    with LocalKafka(data_dir=folder) as second:
        assert second.bootstrap_servers != first.bootstrap_servers
        assert consume(second.bootstrap_servers, "events", 2) == [b"one", b"two"]
    with pytest.raises(BrokerError, match=r"has the data of 1 broker\(s\), not of 3"):
        LocalKafka(data_dir=folder, brokers=3).start()


def test_three_brokers_lose_one_and_nothing_else() -> None:
    with LocalKafka(brokers=3) as kafka:
        admin = create_topic(kafka.bootstrap_servers, "events", replicas=3)
        produce(kafka.bootstrap_servers, "events", b"one")
        metadata = admin.list_topics(timeout=10)
        assert sorted(metadata.brokers) == [0, 1, 2]
        leader = metadata.topics["events"].partitions[0].leader
        kafka.kill(leader)
        produce(kafka.bootstrap_servers, "events", b"two")
        assert consume(kafka.bootstrap_servers, "events", 2) == [b"one", b"two"]
        topics = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics
        replicas = {
            name: len(topics[name].partitions[0].replicas)
            for name in ("events", "__consumer_offsets", "__transaction_state")
        }
        assert replicas == {"events": 3, "__consumer_offsets": 3, "__transaction_state": 3}
        assert topics["events"].partitions[0].leader != leader


def test_the_local_broker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            assert owner.stdout is not None
            said = next(line for line in owner.stdout if line.startswith("owner of"))
            *_, pid, address = said.split()
            assert is_listening(address)
            # In a group of its own, a Ctrl-C at the parent's terminal does not reach it.
            assert os.getpgid(int(pid)) == int(pid) != os.getpgid(owner.pid)
        finally:
            owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_listening(address), seconds=5)


def test_a_broker_that_ends_while_it_starts_is_an_error_with_the_reason_from_its_log(tmp_path: Path) -> None:
    broker = LocalKafka(data_dir=tmp_path, properties={"log.retention.hours": "soon"})
    with pytest.raises(BrokerError, match=r"Invalid value soon for configuration log\.retention\.hours"):
        broker.start()
    broker.stop()


def test_a_port_that_is_taken_is_named_at_once() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} .* is taken"):
            LocalKafka(port=port).start()


@pytest.mark.parametrize("content", ["", "[]", '{"name": "of something else"}'])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_text(content)
    with pytest.raises(BrokerError, match=r"cluster\.json was not written by the local Kafka"):
        LocalKafka(data_dir=tmp_path).start()
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.json"]


@pytest.mark.parametrize("brokers", [0, 2, 4])
def test_other_numbers_of_brokers_are_refused(brokers: int) -> None:
    with pytest.raises(BrokerError, match=f"1 broker or 3, not {brokers}"):
        LocalKafka(brokers=brokers)


def test_the_startup_cache_is_one_that_the_java_runtime_uses() -> None:
    assert startup.write_startup_cache().exists()
    strictly = [*java_command(), "-XX:AOTMode=on", "kafka.tools.StorageTool", "random-uuid"]
    done = subprocess.run(strictly, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) == 22, "a Kafka uuid, and no warning"
