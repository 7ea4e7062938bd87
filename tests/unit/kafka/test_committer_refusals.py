"""What brokers refuse: outputs that can never be produced, privileges, times; and how long the committer waits."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from streamer.kafka import InFlightRecord, Output, Record
from streamer.kafka.commit.outcomes import RestartError
from streamer.kafka.inflight.offsets import Progress
from streamer.kafka.records import dead_letter_reason
from tests.support.committing import ABORTABLE, AT, FATAL, ID, Case
from tests.support.fake_client import TIMED_OUT
from tests.support.fake_kafka import DEAD, GROUP, INPUT, OUTPUT

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka


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
    labels = {"topic": OUTPUT, "reason": "refused"}
    assert case.metrics.registry.get_sample_value("streamer_outputs_retimed_total", labels) == 2


def test_an_output_keeps_the_time_that_it_was_given(case: Case) -> None:
    (record,) = case.receive(0)
    record.complete([Output(OUTPUT, b"k0", b"x", (), timestamp=1_234)], since=AT)
    case.turns(case.committed)
    assert [entry.at for entry in case.fake.cluster.read(OUTPUT)] == [1.234]
