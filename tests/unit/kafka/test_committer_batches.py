"""What is committed together, and what becomes of a transaction: committed, aborted, unknown, lost, fenced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streamer.kafka.commit.outcomes import FencedError, LostCommitError
from streamer.kafka.inflight.offsets import Progress
from tests.support.committing import ABORTABLE, FATAL, ID, Case
from tests.support.fake_client import TIMED_OUT, HangError
from tests.support.fake_kafka import GROUP, INPUT

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka


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
