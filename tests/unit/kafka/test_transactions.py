"""One transaction, step by step: what each call's failure leaves behind, and what the caller is told."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.faults import FaultPoint
from streamer.kafka import InFlightRecord, Output, Record
from streamer.kafka.client.acls import Resource
from streamer.kafka.commit.outcomes import AbortedError, Batch, FencedError, OutcomeUnknownError, RestartError
from streamer.kafka.commit.transactions import Transactions
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import TIMED_OUT, HangError, error
from tests.support.fake_cluster import Outcome
from tests.support.fake_kafka import DEAD, GROUP, INPUT, OUTPUT

if TYPE_CHECKING:
    from tests.support.fake_consumer import FakeConsumer
    from tests.support.fake_kafka import FakeKafka

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
ID = "streamer-rerank-one"
STEPS = ["produce", "send", "send_offsets", "commit_transaction"]


class Case:
    """A transactional producer, a member of the group, and batches for them."""

    def __init__(self, fake: FakeKafka) -> None:
        self.fake = fake
        self.transactions = Transactions.of_service(load({"instance_id": "one"}), RERANK, {})
        self.member: FakeConsumer = fake.member()
        self.member.poll(0)
        self.member.poll(0)

    def batch(self, *values: bytes, topic: str = OUTPUT) -> Batch:
        records = []
        for offset, value in enumerate(values):
            record = InFlightRecord(Record(INPUT, 0, offset, b"k%d" % offset, b"{}", (), AT), lambda: None)
            record.complete([Output(topic, b"k%d" % offset, value, ())])
            records.append(record)
        return Batch(records, [TopicPartition(INPUT, 0, len(values), metadata="m")])

    def run(self, batch: Batch) -> None:
        self.transactions.init()
        self.transactions.run(batch, self.member.consumer_group_metadata())

    def outcomes(self) -> list[Outcome]:
        return [each.outcome for each in self.fake.cluster.transactions]

    def assert_committed_once(self, *values: bytes) -> None:
        assert [entry.value for entry in self.fake.cluster.read(OUTPUT)] == list(values)
        progress = self.fake.progress()
        assert progress is not None
        assert progress.offset == len(values)
        assert self.fake.cluster.open_transactions() == []

    def assert_nothing_happened(self) -> None:
        assert self.fake.cluster.read(OUTPUT) == []
        assert self.fake.progress() is None


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    return Case(fake)


def test_outputs_offsets_and_metadata_become_visible_together(case: Case) -> None:
    case.run(case.batch(b"a", b"b"))
    case.assert_committed_once(b"a", b"b")
    assert case.fake.cluster.group(GROUP).committed[INPUT, 0].metadata == "m"


def test_the_steps_come_in_the_order_that_the_text_says(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[FaultPoint] = []
    monkeypatch.setattr("streamer.kafka.commit.transactions.reach", reached.append)
    case.run(case.batch(b"a"))
    assert reached == [
        FaultPoint.INITIALISED,
        FaultPoint.BEGUN,
        FaultPoint.OFFSETS_SENT,
        FaultPoint.PRODUCED,
        FaultPoint.COMMITTED,
    ]


# -- init ------------------------------------------------------------------------------------------------------


def test_an_init_without_a_response_is_repeated(case: Case) -> None:
    case.fake.fail("init_transactions", TIMED_OUT)
    with pytest.raises(OutcomeUnknownError):
        case.transactions.init()
    case.run(case.batch(b"a"))
    case.assert_committed_once(b"a")


def test_transactions_are_initialised_once_per_producer(case: Case) -> None:
    for _ in range(3):
        case.transactions.init()
    assert case.fake.count("init_transactions") == 1


def test_a_transactional_id_that_may_not_be_used_is_named(case: Case) -> None:
    case.fake.cluster.denied.add(("transactional-id", ID))
    with pytest.raises(RestartError, match=f"lacks Write on the transactional-id {ID}") as raised:
        case.transactions.init()
    assert raised.value.refused is Resource.TRANSACTIONAL_ID


def test_an_init_that_is_fenced_by_a_newer_one_says_so(case: Case) -> None:
    case.fake.fail("init_transactions", error(KafkaError.PRODUCER_FENCED, fatal=True))
    with pytest.raises(FencedError):
        case.transactions.init()


def test_an_init_that_hangs_is_given_up_at_its_time_limit_with_its_producer(case: Case) -> None:
    case.fake.fail("init_transactions", HangError())
    began = case.fake.clock.now
    with pytest.raises(RestartError, match="init_transactions did not return"):
        case.transactions.init()
    assert 4.9 < case.fake.clock.now - began < 5.1
    case.transactions.restart()
    case.run(case.batch(b"a"))
    case.assert_committed_once(b"a")


# -- commit and abort whose outcome is unknown -----------------------------------------------------------------


@pytest.mark.parametrize("is_decided", [False, True], ids=["not decided", "decided"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_without_a_response_is_only_repeated(case: Case, is_decided: bool, times: int) -> None:
    case.fake.fail("commit_transaction", TIMED_OUT, applied=is_decided, times=times)
    batch = case.batch(b"a", b"b")
    for _ in range(times):
        with pytest.raises(OutcomeUnknownError):
            case.run(batch)
    case.run(batch)
    case.assert_committed_once(b"a", b"b")
    assert case.fake.count("begin_transaction") == 1
    assert case.fake.count("produce") == 2


@pytest.mark.parametrize("is_decided", [False, True], ids=["not decided", "decided"])
def test_an_abort_without_a_response_is_repeated_and_keeps_its_cause(case: Case, is_decided: bool) -> None:
    case.fake.fail("send_offsets", error(KafkaError.ILLEGAL_GENERATION, abortable=True))
    case.fake.fail("abort_transaction", TIMED_OUT, applied=is_decided)
    batch = case.batch(b"a")
    with pytest.raises(OutcomeUnknownError):
        case.run(batch)
    cause = KafkaError(KafkaError.ILLEGAL_GENERATION).str()
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    assert str(raised.value) == cause
    case.assert_nothing_happened()
    case.run(batch)
    case.assert_committed_once(b"a")


def test_a_commit_that_fails_in_such_a_way_that_it_must_be_aborted_is_aborted(case: Case) -> None:
    case.fake.fail("commit_transaction", error(KafkaError.INVALID_TXN_STATE, abortable=True))
    batch = case.batch(b"a")
    with pytest.raises(AbortedError):
        case.run(batch)
    case.assert_nothing_happened()
    case.run(batch)
    case.assert_committed_once(b"a")


def test_a_commit_that_fails_for_good_costs_the_producer(case: Case) -> None:
    case.fake.fail("commit_transaction", error(KafkaError.UNKNOWN, fatal=True))
    with pytest.raises(RestartError):
        case.run(case.batch(b"a"))


@pytest.mark.parametrize("is_decided", [False, True], ids=["not decided", "decided"])
def test_a_commit_that_hangs_costs_the_producer_and_the_group_knows_what_came_of_it(
    case: Case, is_decided: bool
) -> None:
    case.fake.fail("commit_transaction", HangError(), applied=is_decided)
    batch = case.batch(b"a")
    with pytest.raises(RestartError, match="commit_transaction did not return"):
        case.run(batch)
    case.transactions.restart()
    case.transactions.init()
    assert case.outcomes() == [Outcome.COMMITTED if is_decided else Outcome.ABORTED]
    assert (case.fake.progress() is not None) == is_decided


# -- before the commit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        error(KafkaError.ILLEGAL_GENERATION, abortable=True),
        error(KafkaError._TIMED_OUT, retriable=True),
        error(KafkaError.COORDINATOR_NOT_AVAILABLE, retriable=True),
        error(KafkaError.UNKNOWN),
    ],
    ids=str,
)
def test_offsets_that_are_not_taken_abort_the_transaction(case: Case, fault: KafkaError) -> None:
    case.fake.fail("send_offsets", fault)
    batch = case.batch(b"a")
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    assert not raised.value.rejected
    case.assert_nothing_happened()
    case.run(batch)
    case.assert_committed_once(b"a")


def test_offsets_of_a_member_that_the_group_has_expelled_are_refused(case: Case) -> None:
    metadata = case.member.consumer_group_metadata()
    case.member.expel()
    case.transactions.init()
    with pytest.raises(AbortedError, match="Unknown member"):
        case.transactions.run(case.batch(b"a"), metadata)
    case.assert_nothing_happened()


def test_offsets_of_a_member_of_an_earlier_generation_are_refused(case: Case) -> None:
    metadata = case.member.consumer_group_metadata()
    assert case.member.member is not None
    case.member.member.epoch += 1
    case.transactions.init()
    with pytest.raises(AbortedError):
        case.transactions.run(case.batch(b"a"), metadata)
    case.assert_nothing_happened()


def test_sending_offsets_that_hangs_costs_the_producer_and_the_next_one_aborts(case: Case) -> None:
    case.fake.fail("send_offsets", HangError(), applied=True)
    batch = case.batch(b"a")
    with pytest.raises(RestartError, match="send_offsets_to_transaction did not return"):
        case.run(batch)
    case.transactions.restart()
    case.run(batch)
    assert case.outcomes() == [Outcome.ABORTED, Outcome.COMMITTED]
    case.assert_committed_once(b"a")


def test_records_that_are_not_acknowledged_in_time_abort_the_transaction(case: Case) -> None:
    def stand(is_down: bool) -> None:
        case.fake.cluster.down = is_down

    case.transactions.init()
    case.fake.fail("send_offsets", lambda: stand(is_down=True), applied=True)
    case.fake.fail("abort_transaction", lambda: stand(is_down=False))
    began = case.fake.clock.now
    with pytest.raises(AbortedError, match="1 records not acknowledged in time"):
        case.run(case.batch(b"a"))
    assert 5.0 <= case.fake.clock.now - began < 5.5
    case.assert_nothing_happened()


def test_a_full_queue_is_waited_for(case: Case) -> None:
    full = case.fake.fail("produce", BufferError("Local: Queue full"), times=2)
    case.run(case.batch(b"a", b"b"))
    case.assert_committed_once(b"a", b"b")
    assert full.fired == 2


# -- outputs that can never be produced ------------------------------------------------------------------------


def test_an_output_that_the_client_refuses_is_named_and_nothing_is_committed(case: Case) -> None:
    batch = case.batch(b"a", b"x" * ((8 << 20) + 1), b"c")
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    ((record, why),) = raised.value.rejected
    assert record is batch.records[1]
    assert "message.max.bytes" in why
    case.assert_nothing_happened()


def test_an_output_that_the_topic_refuses_is_named(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 100
    batch = case.batch(b"x" * 200)
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    assert [record for record, _ in raised.value.rejected] == list(batch.records)
    case.assert_nothing_happened()


def test_a_broker_refuses_all_of_a_batch_for_one_record_and_all_are_suspects(case: Case) -> None:
    case.fake.cluster.topics[OUTPUT].max_message_bytes = 100
    batch = case.batch(b"a", b"x" * 200)
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    assert [record for record, _ in raised.value.rejected] == list(batch.records)


def test_a_record_that_the_broker_takes_for_invalid_is_named(case: Case) -> None:
    case.fake.fail("send", error(KafkaError.INVALID_RECORD))
    batch = case.batch(b"a")
    with pytest.raises(AbortedError) as raised:
        case.run(batch)
    assert len(raised.value.rejected) == 1


# -- privileges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", [OUTPUT, DEAD])
def test_a_topic_that_may_not_be_written_is_named(case: Case, topic: str) -> None:
    case.fake.cluster.denied.add(("topic", topic))
    batch = case.batch(b"a", topic=topic)
    with pytest.raises(AbortedError, match=f"Write on the topic {topic}") as raised:
        case.run(batch)
    assert raised.value.refused is Resource.TOPIC
    assert not raised.value.rejected
    case.assert_nothing_happened()


def test_a_group_that_may_not_be_used_is_named(case: Case) -> None:
    case.fake.cluster.denied.add(("group", GROUP))
    with pytest.raises(AbortedError, match=f"lacks Read on the group {GROUP}") as raised:
        case.run(case.batch(b"a"))
    assert raised.value.refused is Resource.GROUP


# -- producers that have been fenced or forgotten --------------------------------------------------------------


def test_a_producer_that_was_fenced_before_its_transaction_has_nothing_appended(case: Case) -> None:
    case.transactions.init()
    case.fake.cluster.init_transactions(ID)
    with pytest.raises(FencedError):
        case.run(case.batch(b"a"))
    assert case.fake.cluster.log(OUTPUT).end == 0
    case.assert_nothing_happened()


@pytest.mark.parametrize("step", ["send_offsets", "commit_transaction"])
def test_a_producer_that_is_fenced_within_its_transaction_loses_it(case: Case, step: str) -> None:
    case.fake.fail(step, lambda: case.fake.cluster.init_transactions(ID))
    with pytest.raises(FencedError):
        case.run(case.batch(b"a"))
    assert Outcome.COMMITTED not in case.outcomes()
    case.assert_nothing_happened()


def test_a_producer_that_is_fenced_while_its_abort_is_under_way_says_so(case: Case) -> None:
    case.fake.fail("send_offsets", error(KafkaError.UNKNOWN))
    case.fake.fail("abort_transaction", lambda: case.fake.cluster.init_transactions(ID))
    with pytest.raises(FencedError):
        case.run(case.batch(b"a"))


def test_a_transaction_that_stood_still_for_too_long_is_fenced(case: Case) -> None:
    def stand_still() -> None:
        case.fake.clock.sleep(61)
        case.fake.cluster.expire_transactions()

    case.fake.fail("commit_transaction", stand_still)
    with pytest.raises(FencedError):
        case.run(case.batch(b"a"))
    case.assert_nothing_happened()


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_transactional_id_that_the_coordinator_has_expired_is_initialised_by_a_new_producer(
    case: Case, step: str
) -> None:
    case.transactions.init()
    if step == "commit_transaction":
        case.fake.fail(step, lambda: case.fake.cluster.forget_transactional_id(ID))
    else:
        case.fake.fail(step, error(KafkaError.INVALID_PRODUCER_ID_MAPPING, abortable=True))
    batch = case.batch(b"a")
    with pytest.raises(RestartError):
        case.run(batch)
    assert case.fake.count("abort_transaction") == 0  # which would use the forgotten producer id again
    case.transactions.restart()
    case.run(batch)
    case.assert_committed_once(b"a")


def test_a_new_producer_fences_the_one_that_it_replaces(case: Case) -> None:
    case.transactions.init()
    old: Any = case.transactions._producer
    case.transactions.restart()
    case.run(case.batch(b"a"))
    old.begin_transaction()
    with pytest.raises(KafkaException) as raised:
        old.send_offsets_to_transaction([TopicPartition(INPUT, 0, 9)], case.member.consumer_group_metadata(), 1)
    assert raised.value.args[0].code() == KafkaError._FENCED
    case.assert_committed_once(b"a")


# -- between transactions, and at a stop -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (error(KafkaError._FENCED, fatal=True), FencedError),
        (error(KafkaError.UNKNOWN, fatal=True), RestartError),
    ],
    ids=str,
)
def test_a_producer_that_breaks_while_it_is_idle_says_so_at_a_poll(
    case: Case, fault: KafkaError, expected: type[Exception]
) -> None:
    case.transactions.init()
    case.fake.fail("poll", fault)
    with pytest.raises(expected):
        case.transactions.poll()


@pytest.mark.parametrize(("is_hurried", "seconds"), [(False, 2.0), (True, 0.8)])
def test_a_stop_waits_less_for_an_answer(case: Case, is_hurried: bool, seconds: float) -> None:
    case.transactions.init()
    if is_hurried:
        case.transactions.hurry()
    case.fake.fail("commit_transaction", TIMED_OUT)
    began = case.fake.clock.now
    with pytest.raises(OutcomeUnknownError):
        case.run(case.batch(b"a"))
    assert seconds <= case.fake.clock.now - began < seconds + 0.3


def test_a_batch_of_offsets_alone_has_nothing_to_produce(case: Case) -> None:
    case.run(Batch([], [TopicPartition(INPUT, 0, 4)]))
    progress = case.fake.progress()
    assert progress is not None
    assert progress.offset == 4
    assert case.fake.count("produce") == 0


def test_aborted_outputs_stay_in_the_log_and_no_read_committed_consumer_sees_them(case: Case) -> None:
    case.fake.fail("commit_transaction", error(KafkaError.INVALID_TXN_STATE, abortable=True))
    batch = case.batch(b"a")
    with pytest.raises(AbortedError):
        case.run(batch)
    case.run(batch)
    log = case.fake.cluster.log(OUTPUT)
    assert (log.end, [entry.offset for entry in log.readable()]) == (4, [2])
