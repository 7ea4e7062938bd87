"""The policy around transactions: what is committed together, what is tried again, and when it is given up."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError

from streamer.health import Health
from streamer.kafka import InFlightRecord, Output, Record
from streamer.kafka.commit.committer import Committer, LostCommitError
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.commit.outcomes import FencedError, RestartError
from streamer.kafka.commit.rotation import Rotation
from streamer.kafka.inflight.offsets import Progress
from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
from streamer.kafka.records import dead_letter_reason
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import TIMED_OUT, HangError, error
from tests.support.fake_kafka import DEAD, GROUP, INPUT, OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fake_kafka import FakeKafka

AT = dt.datetime(2026, 9, 21, tzinfo=dt.UTC)
ID = "streamer-rerank-one"
ABORTABLE = error(KafkaError.INVALID_TXN_STATE, abortable=True)
FATAL = error(KafkaError.UNKNOWN, fatal=True)


class Case:
    """A committer of one instance that owns one partition, of which the group has committed nothing."""

    def __init__(self, fake: FakeKafka, *, producers: int = 1) -> None:
        settings = load({"instance_id": "one"})
        self.fake = fake
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.assignment = Assignment(max_records=10_000, max_bytes=1 << 30)
        self.membership = GroupMembership(settings, RERANK, {})
        self.topics_looked_up = 0
        self.committer = Committer(
            Rotation(settings, replace(RERANK, producers=producers), {}),
            self.membership,
            self.assignment,
            metrics=self.metrics,
            health=self.health,
            topic_refused=self._look_up_topics,
        )
        self.membership.join(on_assign=lambda *_: None, on_revoke=lambda *_: None, on_lost=lambda *_: None)
        for _ in range(3):
            self.membership.consumer.poll(0)
        self.assignment.add(INPUT, 0, f"{fake.cluster.topics[INPUT].topic_id}-0")
        self.partition.start_from(None)

    def _look_up_topics(self) -> None:
        self.topics_looked_up += 1

    @property
    def partition(self) -> AssignedPartition:
        partition = self.assignment.get(0)
        assert partition is not None
        return partition

    def start(self) -> None:
        assert self.committer.start()

    def receive(self, *offsets: int) -> list[InFlightRecord]:
        records = [
            InFlightRecord(Record(INPUT, 0, offset, b"k%d" % offset, b"{}", (), AT), lambda: None) for offset in offsets
        ]
        for record in records:
            self.partition.add(record)
        return records

    def complete(self, *records: InFlightRecord, size: int = 1) -> None:
        for record in records:
            record.complete([Output(OUTPUT, record.record.key, b"x" * size, ())], since=AT)

    def turns(self, condition: Callable[[], bool], *, step: float = 0.005) -> None:
        """Let the committer turn until something holds."""
        for _ in range(5_000):
            if condition():
                return
            self.committer.commit_completed()
            self.fake.clock.sleep(step)
        raise AssertionError("it does not come about")

    def committed(self) -> bool:
        return not self.assignment.records

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("streamer_transactions_total", {"outcome": outcome}) or 0.0

    def not_ready(self) -> list[str]:
        return [each for each in self.health.readiness_problems() if each.startswith("transactions")]


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    made = Case(fake)
    made.start()
    return made


# -- what is committed together --------------------------------------------------------------------------------


def test_what_is_complete_goes_in_one_transaction_and_is_forgotten(case: Case) -> None:
    case.complete(*case.receive(0, 1, 2))
    assert case.committer.commit_completed()
    assert case.fake.outputs() == [b"k0", b"k1", b"k2"]
    assert (case.fake.progress(), case.assignment.records) == (Progress(3), 0)
    assert case.count("committed") == 1


def test_nothing_complete_makes_no_transaction(case: Case) -> None:
    case.receive(0)
    assert not case.committer.commit_completed()
    assert case.fake.count("begin_transaction") == 0


def test_records_beyond_one_that_is_not_complete_are_committed_without_it(case: Case) -> None:
    records = case.receive(0, 1, 2, 3)
    case.complete(records[1], records[2], records[3])
    assert case.committer.commit_completed()
    assert case.fake.progress() == Progress(0, frozenset({1, 2, 3}))
    case.complete(records[0])
    assert case.committer.commit_completed()
    assert case.fake.progress() == Progress(4)


def test_no_transaction_holds_more_than_a_thousand_records(case: Case) -> None:
    case.complete(*case.receive(*range(1_500)))
    assert case.committer.commit_completed()
    assert case.fake.progress() == Progress(1_000)
    assert case.committer.commit_completed()
    assert case.fake.progress() == Progress(1_500)


def test_a_backlog_waits_for_more_for_fifty_milliseconds_at_most(case: Case) -> None:
    records = case.receive(*range(10))
    case.complete(records[0])
    began = case.fake.clock.now
    assert not case.committer.commit_completed()
    assert case.committer.lingers
    case.turns(lambda: case.fake.progress() is not None, step=0.001)
    assert 0.05 <= case.fake.clock.now - began < 0.06
    assert not case.committer.lingers


def test_what_is_mostly_complete_does_not_wait(case: Case) -> None:
    records = case.receive(*range(10))
    case.complete(*records[:5])
    assert case.committer.commit_completed()


def test_a_stop_does_not_wait_for_more(case: Case) -> None:
    records = case.receive(*range(10))
    case.complete(records[0])
    case.committer.hurry()
    assert case.committer.commit_completed()


def test_what_is_passed_over_at_the_end_is_committed_after_a_second_of_rest(case: Case) -> None:
    case.partition.reached_end(7)
    began = case.fake.clock.now
    case.turns(lambda: case.fake.progress() is not None)
    assert 1.0 <= case.fake.clock.now - began < 1.1
    assert case.fake.progress() == Progress(7)
    assert case.fake.count("begin_transaction") == 1


def test_what_is_passed_over_goes_along_with_the_records_of_another_partition(fake_pair: FakeKafka) -> None:
    case = Case(fake_pair)
    case.start()
    case.assignment.add(INPUT, 1, f"{fake_pair.cluster.topics[INPUT].topic_id}-1")
    other = case.assignment.get(1)
    assert other is not None
    other.start_from(Progress(3))
    other.reached_end(5)
    case.complete(*case.receive(0))
    assert case.committer.commit_completed()
    assert (case.fake.progress(0), case.fake.progress(1)) == (Progress(1), Progress(5))


def test_nothing_is_committed_of_a_partition_of_which_it_is_not_known_what_is_done(case: Case) -> None:
    case.assignment.add(INPUT, 0, "log-0")  # assigned anew
    case.partition.reached_end(7)
    for _ in range(400):
        case.committer.commit_completed()
        case.fake.clock.sleep(0.01)
    assert case.fake.progress() is None


# -- outcomes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_decided", [False, True], ids=["not decided", "decided"])
def test_a_batch_whose_outcome_is_unknown_is_kept_as_it_is(case: Case, is_decided: bool) -> None:
    case.complete(*case.receive(0, 1))
    case.fake.fail("commit_transaction", TIMED_OUT, applied=is_decided)
    assert not case.committer.commit_completed()
    case.complete(*case.receive(2))  # must not join a transaction that may be over
    case.turns(lambda: case.count("committed") == 1)
    assert case.fake.progress() == Progress(2)
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0", b"k1", b"k2"]
    assert case.count("unknown") == 1


def test_an_aborted_batch_is_sent_again(case: Case) -> None:
    case.complete(*case.receive(0, 1))
    case.fake.fail("commit_transaction", ABORTABLE, times=2)
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0", b"k1"]
    assert (case.count("aborted"), case.count("committed")) == (2, 1)


@pytest.mark.parametrize("is_decided", [False, True], ids=["not decided", "decided"])
def test_after_a_lost_producer_the_group_tells_whether_it_was_committed(case: Case, is_decided: bool) -> None:
    case.complete(*case.receive(0, 1))
    case.fake.fail("commit_transaction", FATAL, applied=is_decided)
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0", b"k1"]
    assert (case.count("restarted"), case.count("committed")) == (1, 0 if is_decided else 1)


def test_a_new_producer_that_cannot_start_yet_is_tried_until_it_can(case: Case) -> None:
    case.complete(*case.receive(0))
    case.fake.fail("commit_transaction", HangError(), applied=True)
    case.fake.fail("init_transactions", TIMED_OUT, times=2)
    case.fake.fail("init_transactions", FATAL)
    case.fake.fail("committed", TIMED_OUT, times=2)
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0"]
    assert case.count("restarted") == 2


def test_a_lost_commit_is_distinguished_from_one_that_never_happened(case: Case) -> None:
    case.complete(*case.receive(0, 1))
    assert case.committer.commit_completed()
    case.complete(*case.receive(2))
    case.fake.fail("commit_transaction", FATAL)
    del case.fake.cluster.group(GROUP).committed[INPUT, 0]
    with pytest.raises(LostCommitError, match=r"query\.results-0: 2 was committed, the group has nothing"):
        case.turns(case.committed)


def test_a_commit_of_which_only_the_metadata_is_lost_is_lost(case: Case) -> None:
    records = case.receive(0, 1)
    case.complete(records[1])
    assert case.committer.commit_completed()
    case.fake.cluster.commit(GROUP, (INPUT, 0), 0, "reset by hand")
    case.complete(records[0])
    case.fake.fail("commit_transaction", FATAL)
    with pytest.raises(LostCommitError, match="2 was committed, the group has 0"):
        case.turns(case.committed)


def test_a_fenced_producer_is_for_the_loop_to_report(case: Case) -> None:
    case.complete(*case.receive(0))
    case.fake.cluster.init_transactions(ID)
    with pytest.raises(FencedError):
        case.committer.commit_completed()


def test_an_idle_producer_that_breaks_is_replaced_before_the_next_transaction(case: Case) -> None:
    case.fake.fail("poll", FATAL)
    case.committer.serve()
    assert case.count("restarted") == 1
    case.complete(*case.receive(0))
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0"]


def test_producers_take_turns(fake: FakeKafka) -> None:
    case = Case(fake, producers=3)
    case.start()
    for offset in range(6):
        case.complete(*case.receive(offset))
        assert case.committer.commit_completed()
    begun = [client for client, call in fake.calls if call == "begin_transaction"]
    assert begun == 2 * [ID, f"{ID}#1", f"{ID}#2"]


def test_a_settled_commit_does_not_set_back_what_the_group_has_committed_since(case: Case) -> None:
    """A commit whose answer did not come; the partition went to another member, which committed more, and came back."""
    case.complete(*case.receive(0))
    case.fake.fail("commit_transaction", TIMED_OUT, applied=True)
    assert not case.committer.commit_completed()
    case.assignment.remove(0)
    case.assignment.add(INPUT, 0, "log-0")
    since = Progress(3, frozenset({5}))
    case.partition.start_from(since)
    case.turns(lambda: case.count("committed") == 1)
    assert case.partition.progress == since


# -- outputs that can never be produced ------------------------------------------------------------------------


def test_an_output_that_is_too_large_becomes_a_dead_letter(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 100
    (record,) = case.receive(0)
    case.complete(record, size=500)
    case.turns(case.committed)
    assert case.fake.outputs() == []
    assert case.fake.outputs(DEAD) == [b"k0"]
    assert [dead_letter_reason(output) for output in record.outputs or ()] == ["too_large"]
    assert record.since == AT
    labels = {"topic": INPUT, "reason": "too_large"}
    assert case.metrics.registry.get_sample_value("streamer_events_dead_lettered_total", labels) == 1


def test_among_several_suspects_the_guilty_one_alone_becomes_a_dead_letter(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 250
    records = case.receive(0, 1, 2, 3)
    case.complete(*records[:2], records[3], size=90)
    case.complete(records[2], size=500)
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0", b"k1", b"k3"]
    assert case.fake.outputs(DEAD) == [b"k2"]
    assert case.fake.progress() == Progress(4)


def test_suspects_are_halved_until_they_pass_and_then_go_together_again(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 250
    case.complete(*case.receive(*range(8)), size=90)  # two of them pass together, three do not
    case.turns(case.committed)
    assert (case.count("aborted"), case.count("committed")) == (2, 4)
    case.fake.clock.sleep(60)
    case.complete(*case.receive(8, 9), size=90)
    case.turns(case.committed)
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 1 << 20  # an operator raises it
    case.complete(*case.receive(*range(10, 14)), size=90)
    case.turns(case.committed)
    assert (case.count("aborted"), case.count("committed")) == (2, 6)


def test_one_output_too_large_costs_a_thousand_neighbours_a_few_transactions(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 100_000
    records = case.receive(*range(1_000))
    case.complete(*records[:700], *records[701:], size=10)
    case.complete(records[700], size=200_000)
    began = case.fake.clock.now
    case.turns(case.committed)
    assert len(case.fake.outputs()) == 999
    assert case.fake.outputs(DEAD) == [b"k700"]
    assert case.count("aborted") + case.count("committed") < 30
    assert case.fake.clock.now - began < 2


def test_the_next_one_too_large_is_recognised_for_a_minute(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 1_000
    case.complete(*case.receive(0), size=2_000)
    case.turns(case.committed)
    assert case.count("aborted") == 1
    large, small = case.receive(1, 2)
    case.complete(large, size=2_000)
    case.complete(small, size=900)
    case.turns(case.committed)
    assert (case.count("aborted"), case.fake.outputs(), case.fake.outputs(DEAD)) == (1, [b"k2"], [b"k0", b"k1"])
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 5_000
    case.fake.clock.sleep(61)
    case.complete(*case.receive(3), size=2_000)
    case.turns(case.committed)
    assert (case.count("aborted"), case.fake.outputs()) == (1, [b"k2", b"k3"])


@pytest.mark.parametrize(("limit", "value_bytes"), [(150_000, 100_000), (1_000, 0)], ids=["cut", "reason alone"])
def test_a_dead_letter_that_is_too_large_is_cut_until_it_fits(case: Case, limit: int, value_bytes: int) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 100
    case.fake.cluster.topics[DEAD].max_message_bytes = limit
    record = InFlightRecord(Record(INPUT, 0, 0, b"k", b"x" * 300_000, (), AT), lambda: None)
    case.partition.add(record)
    case.complete(record, size=500)
    case.turns(case.committed)
    (letter,) = case.fake.cluster.read(DEAD)
    assert len(letter.value or b"") == value_bytes
    assert dict(letter.headers)["dlq.truncated_from"] == b"300000"
    assert dict(letter.headers)["dlq.reason"] == b"too_large"


# -- waiting ---------------------------------------------------------------------------------------------------


def test_failures_are_followed_by_pauses_that_double_up_to_two_seconds(case: Case) -> None:
    case.complete(*case.receive(0))
    at: list[float] = []
    fault = case.fake.fail("send_offsets", ABORTABLE, times=9)
    while fault.fired < 9:
        fired = fault.fired
        case.turns(lambda: fault.fired > fired, step=0.001)  # noqa: B023 - called within the iteration
        at.append(case.fake.clock.now)
    for n, (earlier, later) in enumerate(itertools.pairwise(at)):
        pause = later - earlier
        most = min(2.0, 0.05 * 2**n)
        assert most / 2 <= pause < most + 0.02
    case.turns(case.committed)
    case.complete(*case.receive(1))
    assert case.committer.commit_completed()  # and all that is forgotten


def test_it_is_unready_after_the_third_failure_in_a_row_and_ready_after_a_commit(case: Case) -> None:
    case.complete(*case.receive(0))
    case.fake.fail("commit_transaction", TIMED_OUT, times=4)
    case.turns(lambda: case.count("unknown") == 2)
    assert case.not_ready() == []
    case.turns(lambda: case.count("unknown") == 3)
    assert case.not_ready() == ["transactions: Local: Timed out"]
    case.turns(case.committed)
    assert case.not_ready() == []


def test_a_start_without_a_coordinator_is_tried_again_after_a_pause(fake: FakeKafka) -> None:
    case = Case(fake)
    fake.fail("init_transactions", TIMED_OUT)
    assert not case.committer.start()
    assert not case.committer.start()  # too soon to ask
    assert fake.count("init_transactions") == 1
    fake.clock.sleep(0.1)
    assert case.committer.start()


def test_a_start_without_the_privilege_is_tried_again_with_a_new_producer(fake: FakeKafka) -> None:
    case = Case(fake)
    fake.cluster.denied.add(("transactional-id", ID))
    for _ in range(3):
        assert not case.committer.start()
        fake.clock.sleep(1)
    assert "lacks Write on the transactional-id" in case.not_ready()[0]
    fake.cluster.denied.clear()
    assert case.committer.start()
    assert case.not_ready() == []


def test_a_start_that_fails_for_another_reason_is_not_tried_again(fake: FakeKafka) -> None:
    case = Case(fake)
    fake.fail("init_transactions", FATAL)
    with pytest.raises(RestartError):
        case.committer.start()


@pytest.mark.parametrize(
    ("kind", "name", "looked_up"), [("topic", OUTPUT, 1), ("group", GROUP, 0)], ids=["topic", "group"]
)
def test_a_revoked_privilege_is_waited_for(case: Case, kind: str, name: str, looked_up: int) -> None:
    case.complete(*case.receive(0))
    case.fake.cluster.denied.add((kind, name))
    case.turns(lambda: case.count("aborted") == 3)
    assert f"the {kind} {name}" in case.not_ready()[0]
    assert case.topics_looked_up == 3 * looked_up
    case.fake.cluster.denied.clear()
    case.turns(case.committed)
    assert case.fake.outputs() == [b"k0"]


def test_an_output_whose_time_is_refused_goes_with_the_current_one_and_is_counted(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].accepts_since = 1_000.0
    old, new = case.receive(0, 1)
    old.complete([Output(OUTPUT, b"k0", b"x", (("h", b"1"),), timestamp=999_000)], since=AT)
    new.complete([Output(OUTPUT, b"k1", b"x", (), timestamp=1_000_500)], since=AT)
    case.turns(case.committed)
    entries = case.fake.cluster.read(OUTPUT)
    assert [(entry.key, entry.headers) for entry in entries] == [(b"k0", (("h", b"1"),)), (b"k1", ())]
    assert entries[0].at >= 1_001.0
    # A broker refuses whole batches, so both go with the current time.
    labels = {"topic": OUTPUT}
    assert case.metrics.registry.get_sample_value("streamer_output_timestamps_refused_total", labels) == 2


def test_an_output_keeps_the_time_that_it_was_given(case: Case) -> None:
    (record,) = case.receive(0)
    record.complete([Output(OUTPUT, b"k0", b"x", (), timestamp=1_234)], since=AT)
    case.turns(case.committed)
    assert [entry.at for entry in case.fake.cluster.read(OUTPUT)] == [1.234]
