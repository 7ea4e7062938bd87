"""The product's Kafka clients replaced by ones over a cluster in memory, with a clock of their own and no threads.

:func:`fake_kafka` replaces them in the one place where the product makes clients, and the clock in the modules that
look at it. :class:`Instance` is one process of a service on it: a loop that is driven turn by turn from a test.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from confluent_kafka import ConsumerGroupState, TopicPartition

from streamer import health as health_module
from streamer.health import Health
from streamer.kafka import loop as loop_module
from streamer.kafka import outputs, pipeline, records
from streamer.kafka.client import config
from streamer.kafka.commit import committer, transactions
from streamer.kafka.commit.transactions import HungError
from streamer.kafka.inflight.offsets import Commit, Origin, Progress, read_commit
from streamer.kafka.loop import Loop
from streamer.kafka.pipeline import Stop
from streamer.kafka.records import Output
from streamer.kafka.watch import configs, lag, monitor, surplus, topics
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_admin import FakeAdmin
from tests.support.fake_client import CrashError, Fault, HangError, Process
from tests.support.fake_cluster import Clock, Cluster, Event
from tests.support.fake_consumer import FakeConsumer
from tests.support.fake_producer import FakeProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from confluent_kafka import KafkaError

    from streamer.faults import FaultPoint
    from streamer.kafka import InFlightRecord, Record
    from streamer.settings import Settings
    from tests.support.fake_client import Client, FakeMessage

INPUT, OUTPUT, DEAD = RERANK.topics
GROUP = RERANK.group
_MOST_TURNS = 20_000


class FakeKafka:
    """The place where clients are made: hands them the cluster, the process that they belong to, and the faults."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.process = Process("test")
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        """Each request that a client made: its client.id and the call's name."""
        self.group_states: dict[str, ConsumerGroupState] = {}
        """What admin clients are told of groups, by their names."""
        self.held: list[Callable[[], None]] | None = None
        """Where it is a list, admin clients get no answers but have them put there, to be given by calling them."""

    def make_client(self, kind: type, properties: dict[str, Any]) -> Any:
        """Make a client in the place of one of confluent_kafka's."""
        made = {"Consumer": FakeConsumer, "Producer": FakeProducer, "AdminClient": FakeAdmin}[kind.__name__]
        client: Client = made(self, properties)
        self.process.clients.append(client)
        return client

    def fail(
        self,
        call: str,
        effect: KafkaError | BaseException | Callable[[], object],
        *,
        applied: bool = False,
        skip: int = 0,
        times: int = 1,
        client: str = "",
    ) -> Fault:
        """Let the next calls of that name meet with ``effect``: an error, an exception, or something that is done."""
        fault = Fault(call, effect, applied, skip, times, client)
        self.faults.append(fault)
        return fault

    def crash_at(self, point: FaultPoint, passage: int = 1) -> Fault:
        """Kill the process that reaches this point next."""
        return self.fail(point, CrashError(), skip=passage - 1)

    def reach(self, point: FaultPoint) -> None:
        """In the place of :func:`streamer.faults.reach`."""
        for fault in self.faults:
            if fault.strikes(point, self.process.name):
                self.process.crash()
                raise CrashError

    def bury(self, process: Process) -> None:
        """Let the group notice that a process is gone, as by a session timeout."""
        for client in process.clients:
            if isinstance(client, FakeConsumer) and client.member is not None:
                client.expel()

    def assert_all_fired(self) -> None:
        """A fault that did not come about makes no test."""
        assert not [fault for fault in self.faults if fault.fired < fault.times]

    def count(self, call: str, client: str = "") -> int:
        return sum(name == call and client in who for who, name in self.calls)

    # -- clients of others ---------------------------------------------------------------------------------

    def member(self, group: str = GROUP, topic: str = INPUT) -> FakeConsumer:
        """Return another member of the group, which the test polls; it processes nothing."""
        consumer = FakeConsumer(self, {"group.id": group, "client.id": "other", "enable.partition.eof": True})
        consumer.subscribe([topic])
        return consumer

    def producer(self, transactional_id: str = "upstream") -> FakeProducer:
        """Return a transactional producer that the test drives."""
        producer = FakeProducer(self, {"client.id": transactional_id, "transactional.id": transactional_id})
        producer.init_transactions(1)
        return producer

    # -- what is there -------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        return self.cluster.clock

    def outputs(self, topic: str = OUTPUT) -> list[bytes]:
        """Return the keys that a read_committed consumer finds in a topic, in the order of partition and offset."""
        return [entry.key or b"" for entry in self.cluster.read(topic)]

    def progress(self, partition: int = 0, *, group: str = GROUP, topic: str = INPUT) -> Progress | None:
        """Return how far the group has come in a partition, by what it has committed."""
        return self.committed(partition, group=group, topic=topic).progress

    def committed(self, partition: int = 0, *, group: str = GROUP, topic: str = INPUT) -> Commit:
        """Return what the group has committed of a partition."""
        found = self.cluster.group(group).committed.get((topic, partition))
        if found is None:
            return Commit(None, Origin.NONE)
        log = f"{self.cluster.topics[topic].topic_id}-{partition}"
        return read_commit(TopicPartition(topic, partition, found.offset, metadata=found.metadata), log)

    def assert_exactly_once(self) -> None:
        """Each readable record of the input has one output, and the group is at the end of each partition."""
        wanted = sorted(self.outputs(INPUT))
        assert sorted(self.outputs(OUTPUT) + self.outputs(DEAD)) == wanted
        for number, log in enumerate(self.cluster.topics[INPUT].logs):
            progress = self.progress(number)
            assert all(progress is not None and progress.includes(entry.offset) for entry in log.readable())


class Immediate:
    """In the place of :class:`BoundedCalls`: calls in this thread; one that hangs costs its limit."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        try:
            return function(*arguments)
        except HangError:
            self._clock.sleep(limit)
            raise HungError(f"no end after {limit:g} s") from None


@contextmanager
def fake_kafka(partitions: int = 1) -> Iterator[FakeKafka]:
    """Let the product talk to a cluster in memory, which has the reranker's topics."""
    clock = Clock()
    kafka = FakeKafka(Cluster(clock))
    kafka.cluster.create_topic(INPUT, partitions)
    kafka.cluster.create_topic(OUTPUT)
    kafka.cluster.create_topic(DEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "make_client", kafka.make_client)
        for module in (
            loop_module,
            committer,
            configs,
            outputs,
            pipeline,
            transactions,
            lag,
            monitor,
            surplus,
            topics,
            records,
            health_module,
        ):
            patch.setattr(module, "time", clock)
        patch.setattr(loop_module, "threading", SimpleNamespace(Event=lambda: Event(clock)))
        patch.setattr(transactions, "BoundedCalls", lambda _name: Immediate(clock))
        patch.setattr(transactions, "reach", kafka.reach)
        patch.setattr(committer, "random", random.Random(0))  # noqa: S311 - reproducible, not secret
        yield kafka


class Story(Stop):
    """The wish to stop, which comes when a test's story is told: a generator that goes on at each turn of the loop."""

    def __init__(self, clock: Clock, story: Iterator[None]) -> None:
        super().__init__()
        self._clock = clock
        self._story = story
        self._turns = 0
        self._is_over = False

    def is_set(self) -> bool:
        if not self._is_over:
            self._turns += 1
            assert self._turns < _MOST_TURNS, "the story does not end"
            try:
                next(self._story)
            except StopIteration:
                self._is_over = True
                self.set()
        return self._is_over

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.sleep(timeout or 0.0)
        return self._is_over


def until(condition: Callable[[], bool]) -> Iterator[None]:
    """Go on turning until a condition holds."""
    while not condition():
        yield


def _forever() -> Iterator[None]:
    while True:
        yield


def nothing_happens(fake: FakeKafka, seconds: float) -> Iterator[None]:
    """Go on turning for so long by the cluster's clock."""
    end = fake.clock.now + seconds
    yield from until(lambda: fake.clock.now >= end)


class Work:
    """A pipeline that completes each record at once, or keeps it until the test does (``hold``)."""

    def __init__(self, work: Callable[[Record], Sequence[Output]]) -> None:
        self.work = work
        self.hold = False
        self.submitted: list[InFlightRecord] = []
        """Everything that was handed over."""
        self.waiting: list[InFlightRecord] = []

    def submit(self, works: Sequence[InFlightRecord]) -> None:
        self.submitted += works
        self.waiting += works
        if not self.hold:
            self.complete()

    def complete(self, *offsets: int) -> None:
        """Complete the records at these offsets; none: all that wait."""
        done = [each for each in self.waiting if not offsets or each.record.offset in offsets]
        assert offsets == () or len(done) == len(offsets)
        self.waiting = [each for each in self.waiting if each not in done]
        for each in done:
            each.complete(self.work(each.record))

    @property
    def offsets(self) -> list[int]:
        """The offsets of all that was handed over."""
        return [each.record.offset for each in self.submitted]


@cache
def _defaults() -> Settings:
    """Return the settings of a service that was told nothing: to read them takes longer than most histories."""
    return load({})


def echo(record: Record) -> list[Output]:
    return [Output(OUTPUT, record.key, record.value, ())]


class Instance:
    """One process of the reranker; ``again`` is the one that its supervisor starts in its place."""

    def __init__(
        self,
        fake: FakeKafka,
        name: str = "one",
        *,
        work: Callable[[Record], Sequence[Output]] = echo,
        max_records: int = 100,
        producers: int = 1,
        **settings: Any,
    ) -> None:
        self.fake = fake
        self._arguments: dict[str, Any] = {
            "work": work,
            "max_records": max_records,
            "producers": producers,
            **settings,
        }
        self.name = name
        self.settings: Settings = _defaults().model_copy(update={"instance_id": name, **settings})
        self.process = Process(name)
        self.work = Work(work)
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.health.ready("start")
        with self._running():
            self.loop = Loop(
                self.settings,
                replace(RERANK, producers=producers),
                max_records=max_records,
                metrics=self.metrics,
                health=self.health,
            )

    def again(self) -> Instance:
        return Instance(self.fake, self.name, **self._arguments)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let what is made and reached be this process's; instances may run inside one another's stories."""
        outer, self.fake.process = self.fake.process, self.process
        try:
            yield
        finally:
            self.fake.process = outer

    def run(self, story: Iterator[None] | Callable[[], bool]) -> bool:
        """Run until the story is told, or the condition holds; return what the loop does."""
        told = until(story) if callable(story) else story
        with self._running():
            return self.loop.run(self.work, Story(self.fake.clock, told))

    # -- turn by turn, so that several go on side by side --------------------------------------------------

    def start(self) -> None:
        """Start the loop, which joins the group; brokers and topics must be there."""
        with self._running():
            self.loop._start(Story(self.fake.clock, _forever()))

    def turn(self, count: int = 1) -> None:
        """Let the loop turn; raises what it would end with, as it is raised within."""
        with self._running():
            for _ in range(count):
                self.loop._turn(self.work)

    def stop(self) -> None:
        """Drain and leave, after :meth:`start`."""
        with self._running():
            self.loop._drain(self.fake.clock.monotonic() + self.settings.drain_timeout)
            self.loop._membership.close()

    def crash_during(self, story: Iterator[None] | Callable[[], bool]) -> None:
        """Run until the process is killed, and let the group notice it."""
        with pytest.raises(CrashError):
            self.run(story)
        self.process.crash()
        self.fake.bury(self.process)

    def run_until_caught_up(self) -> None:
        """Run until everything readable of the input is committed, and stop."""
        assert self.run(self.is_caught_up)

    def is_caught_up(self) -> bool:
        for number, log in enumerate(self.fake.cluster.topics[INPUT].logs):
            progress = self.fake.progress(number)
            if any(progress is None or not progress.includes(entry.offset) for entry in log.readable()):
                return False
        return True

    def tell_leaders(self) -> None:
        """Let the statistics come, which the fakes do not have: they name the epoch of each partition's leader."""
        for partition in self.loop._assignment:
            partition.saw_leader(self.fake.cluster.log(INPUT, partition.partition).leader_epoch)

    @property
    def consumer(self) -> FakeConsumer:
        return cast("FakeConsumer", self.loop._consumer)

    def report(self, message: FakeMessage) -> Iterator[None]:
        """Have the consumer hand over a message, or an error, once it has partitions."""
        yield from until(lambda: self.value("streamer_assigned_partitions") > 0)
        self.consumer.incoming.append(message)

    @property
    def not_ready(self) -> dict[str, str]:
        """What /readyz waits for, by condition."""
        return dict(cast("tuple[str, str]", each.split(": ", 1)) for each in self.health.readiness_problems())

    def value(self, name: str, **labels: str) -> float:
        """Return a metric's value; 0 where it has none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0
