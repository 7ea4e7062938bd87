"""Any history of several instances, their deaths and the cluster's faults: each record has one output in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamer.faults import FaultPoint
from streamer.kafka import FatalError
from streamer.kafka.commit.outcomes import FencedError
from tests.support.fake_client import TIMED_OUT, CrashError, HangError, error
from tests.support.fake_kafka import INPUT, Instance, fake_kafka

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("one", "two", "three")
PARTITIONS = 2
POINTS = [FaultPoint.BEGUN, FaultPoint.OFFSETS_SENT, FaultPoint.PRODUCED, FaultPoint.COMMITTED]
CALLS = ["send_offsets", "commit_transaction", "abort_transaction", "init_transactions", "committed", "send"]
EFFECTS: dict[str, Callable[[], Any]] = {
    "times out": lambda: TIMED_OUT,
    "must abort": lambda: error(KafkaError.INVALID_TXN_STATE, abortable=True),
    "is fatal": lambda: error(KafkaError.UNKNOWN, fatal=True),
    "hangs": HangError,
    "crashes": CrashError,
}


class Histories(RuleBasedStateMachine):
    """Up to three instances of the reranker over two partitions."""

    def __init__(self) -> None:
        super().__init__()
        self._context = fake_kafka(partitions=PARTITIONS)
        self.fake = self._context.__enter__()
        self.running: dict[str, Instance] = {}
        self.published = 0

    def teardown(self) -> None:
        try:
            self._heal()
        finally:
            self._context.__exit__(None, None, None)

    def _heal(self) -> None:
        """Let all faults be over: one instance after the others has to make everything good."""
        self.fake.faults.clear()
        self.fake.cluster.down = False
        for name in list(self.running):
            self._kill(name)
        self.fake.clock.sleep(61)
        self.fake.cluster.expire_transactions()
        last = Instance(self.fake, "last")
        last.run_until_caught_up()
        self.fake.assert_exactly_once()

    def _kill(self, name: str) -> None:
        instance = self.running.pop(name)
        instance.process.crash()
        self.fake.bury(instance.process)

    def _do(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (CrashError, FatalError, FencedError, HangError):  # the last: its supervisor kills it
            self._kill(name)

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        self.publish(0, count)

    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(1, 6))
    def publish(self, partition: int, count: int) -> None:
        values = [b"%d" % number for number in range(self.published, self.published + count)]
        self.published += count
        self.fake.cluster.publish(INPUT, *values, partition=partition)

    @precondition(lambda self: not self.fake.cluster.down)
    @rule(partition=st.integers(0, PARTITIONS - 1), is_committed=st.booleans())
    def publish_in_a_transaction(self, partition: int, is_committed: bool) -> None:
        producer = self.fake.producer()
        producer.begin_transaction()
        producer.produce(INPUT, b"x", b"%d" % self.published, partition)
        self.published += 1
        producer.poll(0)
        if is_committed:
            producer.commit_transaction(1)
        else:
            producer.abort_transaction(1)

    @rule(name=st.sampled_from(NAMES), producers=st.integers(1, 2), hold=st.booleans())
    def start(self, name: str, producers: int, hold: bool) -> None:
        if name in self.running or self.fake.cluster.down:
            return
        self.running[name] = instance = Instance(self.fake, name, producers=producers, max_records=4)
        instance.work.hold = hold
        self._do(name, instance.start)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 60))
    def turn(self, data: st.DataObject, count: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._do(name, lambda: self.running[name].turn(count))

    @precondition(lambda self: any(each.work.waiting for each in self.running.values()))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        busy = [each for each in self.running.values() if each.work.waiting]
        work = data.draw(st.sampled_from(busy)).work
        for each in data.draw(st.lists(st.sampled_from(work.waiting), unique_by=id, min_size=1)):
            work.waiting.remove(each)
            each.complete(work.work(each.record))

    @rule(call=st.sampled_from(CALLS), effect=st.sampled_from(sorted(EFFECTS)), is_applied=st.booleans())
    def fail(self, call: str, effect: str, is_applied: bool) -> None:
        self.fake.fail(call, EFFECTS[effect](), applied=is_applied, client="streamer-rerank")

    @rule(code=st.sampled_from([KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE]))
    def lose_the_question_for_offsets(self, code: int) -> None:
        self.fake.fail("offset_fetch", error(code), client="streamer-rerank")

    @rule(is_down=st.booleans())
    def let_brokers_come_or_go(self, is_down: bool) -> None:
        self.fake.cluster.down = is_down

    @rule(point=st.sampled_from(POINTS))
    def die_at(self, point: FaultPoint) -> None:
        self.fake.crash_at(point)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self._kill(data.draw(st.sampled_from(sorted(self.running))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._do(name, self.running[name].stop)
        self.running.pop(name, None)

    @precondition(lambda self: any(each.consumer.member for each in self.running.values()))
    @rule(data=st.data())
    def expel(self, data: st.DataObject) -> None:
        members = [each for each in self.running.values() if each.consumer.member]
        data.draw(st.sampled_from(members)).consumer.expel()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.fake.clock.sleep(seconds)
        self.fake.cluster.expire_transactions()

    @invariant()
    def no_record_has_two_outputs(self) -> None:
        outputs = self.fake.outputs()
        assert len(outputs) == len(set(outputs))


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_any_history_ends_with_one_output_for_each_record = Histories.TestCase
