"""Processes under test: starts them, freezes them while their backlog is written, and measures their work.

The progress of a process is its consumer group's committed offsets, and its cost is its CPU time. Both are read from
outside, twenty times a second, in the same way for the service and for its peers.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.harness.workload import publish, queries
from tests.support.driver import RERANKED, RESULTS, STREAMER
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from bench.harness.workload import Setup
    from tests.support.driver import Bus, Record

GROUP = "streamer-rerank"
PILOT = 1_000
MOST = 60_000
"""Queries in a backlog: 300 MB, and 600 MB with their results."""
_NEW_FROM = 20_000_000
"""Number of the first query in backlogs with new texts; greater than the numbers of all other queries."""
_LOOK_S = 0.05
_WINDOW = (0.1, 0.9)
"""The timed part of a backlog. The first part fills caches, and the last transaction is smaller."""


@dataclass
class Contestant:
    """One or several identical processes that rerank query.results into query.reranked as one consumer group."""

    name: str
    bus: Bus
    group: str
    admin: AdminClient
    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]
    published: int = 0
    """Number of queries published so far."""
    backlog: int = PILOT
    """Number of queries in each following backlog."""
    new_every: int = 0
    """One in this many queries has a text that was never used before; 0: none has."""

    @classmethod
    def start(
        cls, name: str, bus: Bus, command: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path
    ) -> Self:
        """Start one process in each of the environments."""
        processes, logs = [], []
        for number, environment in enumerate(environments):
            log = folder / f"{bus.prefix}{name}-{number}.log"
            with log.open("wb") as output:
                processes.append(
                    subprocess.Popen(  # noqa: S603 - our own command line
                        command,
                        env=dict(environment),
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                    )
                )
            logs.append(log)
        admin = AdminClient({"bootstrap.servers": bus.bootstrap_servers})
        return cls(name, bus, f"{bus.prefix}{GROUP}", admin, processes, logs)

    @classmethod
    def service(cls, setup: Setup, bus: Bus, count: int = 1, **settings: str) -> Self:
        """Start ``count`` processes of ``streamer rerank``."""
        environments = [setup.variables(bus, STREAMER_INSTANCE_ID=f"i{n}", **settings) for n in range(count)]
        return cls.start("streamer", bus, [str(STREAMER), "rerank"], environments, setup.folder)

    @classmethod
    def script(cls, name: str, setup: Setup, bus: Bus, arguments: Sequence[str], **variables: str) -> Self:
        """Start a Python program that takes the brokers and the prefix as its first arguments."""
        program, *others = arguments
        command = [sys.executable, program, bus.bootstrap_servers, bus.prefix, *others]
        return cls.start(name, bus, command, [setup.variables(bus) | variables], setup.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- used by wait_until -----------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raise AssertionError, with the end of its log, if a process has ended."""
        for process in self.processes:
            code = process.poll()
            if code is not None:
                raise AssertionError(f"{self.name} ended with {code}\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the logs."""
        return "\n".join("\n".join(log.read_text(errors="replace").splitlines()[-40:]) for log in self.logs)

    # -- work ----------------------------------------------------------------------------------------------------

    def warm_up(self, setup: Setup, *, seconds: float) -> Self:
        """Wait until each process has partitions, and fill the caches.

        Then choose the size of backlogs so that each takes about ``seconds``; 0 leaves them small.
        """
        if len(self.processes) > 1:
            wait_until(self._is_spread, "the partitions to be spread", seconds=120, alive=[self])
        self._publish(setup, PILOT // 2)
        progress = Progress(self)
        wait_until(lambda: progress.committed() >= self.published, self.name, seconds=120, alive=[self])
        if seconds:
            self.size(setup, seconds=seconds)
        return self

    def size(self, setup: Setup, *, seconds: float, pilot: int = PILOT) -> None:
        """Choose the size of backlogs so that each takes about ``seconds``, from the time of a small one."""
        self.backlog = pilot
        self.backlog = max(pilot, min(MOST, round(seconds * self.drain(setup).events_per_second)))

    def _publish(self, setup: Setup, count: int) -> None:
        # Backlogs without new texts consist of the same queries each time, so that the results can be compared.
        first = _NEW_FROM + self.published if self.new_every else 0
        publish(self.bus, queries(count, setup.clip_count, first=first, new_every=self.new_every))
        self.published += count

    def _is_spread(self) -> bool:
        [future] = self.admin.describe_consumer_groups([self.group]).values()
        members = future.result().members
        return len(members) == len(self.processes) and all(m.assignment.topic_partitions for m in members)

    def drain(self, setup: Setup, *, seconds: float = 120) -> Drain:
        """Write a backlog while the processes are frozen, resume them, and measure for at most ``seconds``."""
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)
        before, count = self.published, self.backlog
        self._publish(setup, count)
        progress = Progress(self)
        usage = [psutil.Process(process.pid) for process in self.processes]
        broker = psutil.Process(setup.kafka.pid(0))
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
        drain = Drain(count, [Sample(time.monotonic(), 0, sum(map(_seconds, usage)), _seconds(broker))])
        deadline = time.monotonic() + seconds
        done = 0
        while done < count:
            self.check_alive()
            assert time.monotonic() < deadline, f"{self.name} has completed {done} of {count}\n{self.tail()}"
            done = progress.committed() - before
            drain.samples.append(Sample(time.monotonic(), done, sum(map(_seconds, usage)), _seconds(broker)))
            time.sleep(_LOOK_S)
        sys.stderr.write(f"{self.name}: {count} queries, {drain.events_per_second:.0f}/s\n")
        return drain


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class Progress:
    """The number of input records that a group has committed."""

    def __init__(self, contestant: Contestant) -> None:
        # A consumer that never joins the group. The admin client can list a group's offsets too, but that has crashed
        # librdkafka 2.16 at twenty requests a second.
        self._consumer = Consumer({"bootstrap.servers": contestant.bus.bootstrap_servers, "group.id": contestant.group})
        self._last = 0
        self._partitions = [TopicPartition(*each) for each in contestant.bus.ends(RESULTS)]

    def committed(self) -> int:
        """Return the number of committed records, from the group's coordinator."""
        with suppress(KafkaException):  # e.g. the group does not exist yet; the next request will succeed
            self._last = sum(max(0, each.offset) for each in self._consumer.committed(self._partitions, 10))
        return self._last


@dataclass(frozen=True, slots=True)
class Sample:
    """Committed events, and CPU seconds used by the processes and by the broker, at a time of the monotonic clock."""

    at: float
    events: int
    cpu: float
    broker_cpu: float


@dataclass
class Drain:
    """The measurements of one backlog."""

    count: int
    samples: list[Sample] = field(default_factory=list)

    def _window(self) -> tuple[Sample, Sample]:
        low, high = (share * self.count for share in _WINDOW)
        first = next(sample for sample in self.samples if sample.events >= low)
        last = next(sample for sample in self.samples if sample.events >= high)
        # A tiny backlog is committed in one transaction; then the only earlier sample is the first one.
        return (self.samples[0] if last is first else first), last

    @property
    def events_per_second(self) -> float:
        """Events per second of wall-clock time."""
        first, last = self._window()
        return (last.events - first.events) / (last.at - first.at)

    @property
    def events_per_cpu_second(self) -> float:
        """Events per second of the processes' CPU time."""
        first, last = self._window()
        return (last.events - first.events) / (last.cpu - first.cpu)

    @property
    def cores(self) -> float:
        """Number of cores that the processes kept busy."""
        first, last = self._window()
        return (last.cpu - first.cpu) / (last.at - first.at)

    @property
    def broker_cores(self) -> float:
        """Number of cores that the broker kept busy."""
        first, last = self._window()
        return (last.broker_cpu - first.broker_cpu) / (last.at - first.at)


def check_answers(contestant: Contestant) -> list[Record]:
    """Assert that each query has exactly one result event, with frame scores. Return the events."""
    answers = contestant.bus.read(RERANKED, seconds=120)
    assert len(answers) == contestant.published, f"{len(answers)} result events for {contestant.published} queries"
    statuses = {each["status"] for each in answers[-1].event["results"]}
    assert statuses == {"reranked"}, statuses
    return answers
