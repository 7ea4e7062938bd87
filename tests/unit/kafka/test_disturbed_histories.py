"""Any history in which Kafka itself moves the ground: logs truncated, created again, mirrored, offsets set by hand.

The guarantee is weaker than that of :mod:`tests.unit.kafka.test_histories`: no record that is in a log at the end has
been skipped, and in a partition that nothing happened to each record has one output.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from streamer.kafka import FatalError
from streamer.kafka.inflight.offsets import Origin, Progress
from tests.support.fake_kafka import GROUP, INPUT, Instance, nothing_happens, until
from tests.unit.kafka.test_histories import PARTITIONS, Histories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_cluster import Committed

_FEW = "QUICK" in os.environ
_EXPLORES = "EXPLORE" in os.environ
pytestmark = [pytest.mark.timeout(7_200)] if _EXPLORES else []  # 20,000 histories take a quarter of an hour
_MOST_STARTS = 10


class DisturbedHistories(Histories):
    """The same instances and faults, and what befalls the input topic and the group's offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.disturbed: set[int] = set()
        """Partitions of which records may be processed again."""
        self.excused: set[bytes | None] = set()
        """Keys of records that somebody has set the offsets past."""
        self.late: dict[int, Committed] = {}
        """Commits of the topic before it was created again, which may still land in the offsets of the new one."""
        self.places: dict[bytes | None, int] = {}

    # -- the guarantee -------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.fake.faults.clear()
        self.fake.cluster.down = False
        for name in list(self.running):
            self._kill(name)
        self.fake.clock.sleep(61)
        self.fake.cluster.expire_transactions()
        for _ in range(_MOST_STARTS):
            last = Instance(self.fake, "last")
            try:
                last.run(self._catch_up(last))
            except FatalError:
                continue
            break
        self._note_places()
        outputs = set(self.fake.outputs())
        for log in self.fake.cluster.topics[INPUT].logs:
            skipped = [each.offset for each in log.readable() if each.key not in outputs | self.excused]
            assert not skipped, f"skipped: {skipped}"

    def _catch_up(self, instance: Instance) -> Iterator[None]:
        # An offset beyond the end looks as if everything were done.
        yield from nothing_happens(self.fake, 4)
        yield from until(instance.is_caught_up)

    def no_record_has_two_outputs(self) -> None:
        self._note_places()
        outputs = [key for key in self.fake.outputs() if self.places.get(key) not in self.disturbed]
        assert len(outputs) == len(set(outputs))

    def _note_places(self) -> None:
        for number, log in enumerate(self.fake.cluster.topics[INPUT].logs):
            self.places.update({each.key: number for each in log.entries if not each.is_marker})

    # -- what happens --------------------------------------------------------------------------------------------

    @rule(partition=st.integers(0, PARTITIONS - 1), share=st.sampled_from([0.0, 0.3, 0.7]), count=st.integers(0, 8))
    def truncate(self, partition: int, share: float, count: int) -> None:
        """Lose the end of a log, and go on writing to it."""
        for instance in self.running.values():
            instance.tell_leaders()
        if not self._names_its_epoch(partition):
            return  # where that log is filled again before anybody reads it, nothing tells it from the old one
        self._note_places()
        self.disturbed.add(partition)
        log = self.fake.cluster.log(INPUT, partition)
        log.truncate(round(log.end * share))
        if count:
            self.publish(partition, count)

    def _names_its_epoch(self, partition: int) -> bool:
        """Whether what is committed, or may still be, says in which leader's epoch its records were written."""
        key = GROUP, (INPUT, partition)
        commits = [each.offsets[key] for each in self.fake.cluster.open_transactions() if key in each.offsets]
        if key[1] in self.fake.cluster.group(GROUP).committed:
            commits.append(self.fake.cluster.group(GROUP).committed[key[1]])
        return all(each.leader_epoch is not None for each in commits)

    @rule(count=st.integers(0, 8))
    def create_again(self, count: int) -> None:
        self._note_places()
        self.disturbed |= set(range(PARTITIONS))
        committed = self.fake.cluster.group(GROUP).committed
        # One that a tool has copied beside another offset is not distinguishable from one that was translated.
        ours = {place: each for place, each in committed.items() if self.fake.committed(place[1]).origin is Origin.OWN}
        self.late |= {number: ours[INPUT, number] for number in range(PARTITIONS) if (INPUT, number) in ours}
        self.fake.cluster.recreate_topic(INPUT)
        if count:
            self.publish(0, count)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def let_a_late_commit_land(self, data: st.DataObject) -> None:
        """A commit that was in flight when the topic was created again; nothing newer has been committed."""
        number = data.draw(st.sampled_from(sorted(self.late)))
        late = self.late.pop(number)
        if (INPUT, number) not in self.fake.cluster.group(GROUP).committed:
            self.fake.cluster.commit(GROUP, (INPUT, number), late.offset, late.metadata)

    @precondition(lambda self: not self.fake.cluster.group(GROUP).members)
    @rule(
        partition=st.integers(0, PARTITIONS - 1),
        offset=st.integers(0, 30),
        source=st.sampled_from(["tool", "copied", "mirrored"]),
        ahead=st.frozensets(st.integers(1, 12), max_size=4),
    )
    def set_offsets(self, partition: int, offset: int, source: str, ahead: frozenset[int]) -> None:
        """An operator's reset, a tool that copies commits, or MirrorMaker 2; only while the group has no member."""
        self._note_places()
        self.disturbed.add(partition)
        log = self.fake.cluster.log(INPUT, partition)
        offset = min(offset, log.end)
        self.excused |= {each.key for each in log.entries if each.offset < offset}
        there = f"{self.fake.cluster.topics[INPUT].topic_id}-{partition}"
        base = offset + 3
        metadata = {
            "tool": "",
            "copied": Progress(base, frozenset(base + each for each in ahead)).metadata(there),
            "mirrored": Progress(base, frozenset(base + each for each in ahead)).metadata("elsewhere-0"),
        }
        self.fake.cluster.commit(GROUP, (INPUT, partition), offset, metadata[source])

    @precondition(lambda self: not self.fake.cluster.group(GROUP).members and not self.fake.cluster.down)
    @rule(partition=st.integers(0, PARTITIONS - 1), beyond=st.integers(1, 9))
    def set_offsets_beyond_the_end(self, partition: int, beyond: int) -> None:
        """Set an offset that is not there yet, and start an instance before it is: afterwards nobody could tell."""
        self._note_places()
        self.disturbed.add(partition)
        self.fake.cluster.commit(GROUP, (INPUT, partition), self.fake.cluster.log(INPUT, partition).end + beyond)
        self.fake.faults.clear()
        for name in list(self.running):  # one that knows the topic by an older id ends before it looks
            self._kill(name)
        self.start("one", 1, hold=False)
        if "one" in self.running:
            self._do("one", lambda: self.running["one"].turn(60))

    @rule(partition=st.integers(0, PARTITIONS - 1), share=st.sampled_from([0.3, 1.0]))
    def delete_by_retention(self, partition: int, share: float) -> None:
        log = self.fake.cluster.log(INPUT, partition)
        log.delete_before(log.start + round((log.stable_end - log.start) * share))


DisturbedHistories.TestCase.settings = settings(
    max_examples=20 if _FEW else 20_000 if _EXPLORES else 440, stateful_step_count=60 if _EXPLORES else 40
)
test_any_disturbed_history_skips_nothing = DisturbedHistories.TestCase
