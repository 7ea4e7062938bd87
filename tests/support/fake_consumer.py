"""confluent_kafka's Consumer over :mod:`tests.support.fake_cluster`."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import orjson
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from tests.support.fake_client import Client, FakeMessage, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.support.fake_cluster import Committed, Log, Member, Place
    from tests.support.fake_kafka import FakeKafka

_JOIN_AGAIN_S = 0.5
"""How long a member that was refused, or expelled, waits before it asks again."""


class GroupMetadata(bytes):
    """What the client serializes of its membership; its parts, for the fakes."""

    group: str
    member: str
    epoch: int

    def __new__(cls, group: str, member: str, epoch: int) -> Self:
        generation = epoch.to_bytes(4, sys.byteorder, signed=True)
        made = super().__new__(cls, b"CGMDv2:" + generation + f"{group}\0{member}\0".encode())
        made.group, made.member, made.epoch = group, member, epoch
        return made


class FakeConsumer(Client):
    """A consumer: as a member of its group once it has subscribed, or of partitions that it is given."""

    def __init__(self, kafka: FakeKafka, properties: dict[str, Any]) -> None:
        super().__init__(kafka, properties)
        self.group = str(properties["group.id"])
        self.member: Member | None = None
        self.owned: dict[Place, str] = {}
        """The partitions that it takes for its own, and the id of the topic that it knows them of."""
        self.paused: set[Place] = set()
        self.positions: dict[Place, int] = {}
        self.incoming: deque[FakeMessage] = deque()
        """What is handed over before anything else: errors, and what a test slips in."""
        self.statistics: deque[Mapping[str, Any]] = deque()
        self.is_closed = False
        self.is_silent = False
        """Whether it says nothing of its partitions when it is closed, as one that is broken."""
        self._topics: list[str] = []
        self._listeners: dict[str, Callable[[Any, list[TopicPartition]], None]] = {}
        self._join_at = 0.0
        self._unstarted: set[Place] = set()
        self._at_end: dict[Place, int] = {}
        self._epochs: dict[Place, int] = {}
        """The leader's epoch of what precedes each position, where it is known: whether that is still there is checked
        when the leader is another one, and at a seek, but not at the start (KIP-320 as librdkafka 2.16 has it)."""
        self._leaders: dict[Place, int] = {}
        """The epoch of each partition's leader when that was checked last, or at the start."""

    def _use(self) -> None:
        self._live()
        if self.is_closed:
            raise RuntimeError("Consumer closed")

    # -- membership ----------------------------------------------------------------------------------------

    def subscribe(self, topics: list[str], **listeners: Callable[[Any, list[TopicPartition]], None]) -> None:
        self._use()
        self._topics, self._listeners = topics, listeners

    def consumer_group_metadata(self) -> GroupMetadata:
        member = self.member
        return GroupMetadata(self.group, member.name if member else "", member.epoch if member else -1)

    def expel(self) -> None:
        """Be taken out of the group, as by a session timeout; the client learns of it when it polls."""
        assert self.member is not None
        self.cluster.leave(self.group, self.member)

    def _tell(self, listener: str, places: Iterable[Place]) -> None:
        listed = [TopicPartition(*place) for place in sorted(places)]
        if listed and listener in self._listeners:
            self._listeners[listener](self, listed)

    def _drop(self, places: Iterable[Place]) -> None:
        for place in list(places):
            self.owned.pop(place, None)
            self.positions.pop(place, None)
            self._unstarted.discard(place)
            self._at_end.pop(place, None)
            self._epochs.pop(place, None)
            self._leaders.pop(place, None)
            if self.member is not None:
                self.member.owned.discard(place)

    def _keep_membership(self) -> bool:
        """Take one step: be expelled, join, let go of partitions, or take over what is free."""
        if not self._topics or self.cluster.down:
            return False
        if self.member is not None and self.member.name not in self.cluster.group(self.group).members:
            lost = list(self.owned)
            self._tell("on_lost", lost)
            self._drop(lost)
            self.member = None
        if self.member is None:
            self._join()
            return self.member is not None
        let_go, take = self.cluster.rebalance(self.group, self.member)
        let_go |= {place for place, topic_id in self.owned.items() if self._topic_id(place) != topic_id}
        if let_go:
            self._tell("on_revoke", let_go)
            self._drop(let_go)
            return True
        self.member.owned |= take
        self.owned.update({place: self._topic_id(place) for place in take})
        self._unstarted |= take
        if take:
            self._tell("on_assign", take)
        return bool(take)

    def _topic_id(self, place: Place) -> str:
        topic = self.cluster.topics.get(place[0])
        return topic.topic_id if topic is not None else ""

    def _join(self) -> None:
        if self.cluster.clock.monotonic() < self._join_at:
            return
        self._join_at = self.cluster.clock.monotonic() + _JOIN_AGAIN_S
        if self.properties.get("group.protocol", "classic") not in self.cluster.protocols:
            self.incoming.append(FakeMessage("", -1, fault=error(KafkaError._FATAL)))
            return
        try:
            self.member = self._request("join", lambda: self.cluster.join(self.group, self._topics), 0)
        except KafkaException as raised:
            self.incoming.append(FakeMessage("", -1, fault=raised.args[0]))

    # -- reading -------------------------------------------------------------------------------------------

    def poll(self, timeout: float) -> FakeMessage | None:
        self._use()
        message = None if self._serve() else self._next()
        if message is None:
            self.cluster.clock.sleep(timeout)
        return message

    def consume(self, count: int, timeout: float) -> list[FakeMessage]:
        self._use()
        messages: list[FakeMessage] = []
        if self._serve():
            return messages
        while len(messages) < count and (message := self._next()) is not None:
            messages.append(message)
        if not messages:
            self.cluster.clock.sleep(timeout)
        return messages

    def _serve(self) -> bool:
        """Serve what comes without being asked for; whether partitions came or went, records of which come later."""
        self._serve_errors()
        while self.statistics:
            self.properties["stats_cb"](orjson.dumps(self.statistics.popleft()).decode())
        return self._keep_membership()

    def _next(self) -> FakeMessage | None:
        if self.incoming:
            return self.incoming.popleft()
        if self.cluster.down:
            return None
        self._start()
        if self.incoming:
            return self.incoming.popleft()
        for place in sorted(set(self.positions) - self.paused, key=lambda each: (self.positions[each], each)):
            message = self._fetch(place)
            if message is not None:
                return message
        return None

    def _start(self) -> None:
        """Ask where to begin with new partitions; where that fails they are never read."""
        if not self._unstarted:
            return
        places, self._unstarted = self._unstarted, set()
        try:
            known = self._request("offset_fetch", lambda: self.cluster.committed(self.group, places), 0)
        except KafkaException as raised:
            if raised.args[0].code() == KafkaError._TIMED_OUT:  # that is asked again
                self._unstarted = places
            else:
                self.incoming.append(FakeMessage("", -1, fault=raised.args[0]))
            return
        for place in places:
            committed = known.get(place)
            self._at_end.pop(place, None)
            self._leaders[place] = self.cluster.log(*place).leader_epoch
            if committed is None:
                self.positions[place] = self._reset(place)
                continue
            self.positions[place] = committed.offset
            if committed.leader_epoch is not None:
                self._epochs[place] = committed.leader_epoch

    def _reset(self, place: Place) -> int:
        log = self.cluster.log(*place)
        is_latest = self.properties.get("auto.offset.reset") == "latest"
        return log.stable_end if is_latest else log.start

    def _fetch(self, place: Place) -> FakeMessage | None:
        if place[0] not in self.cluster.topics or self.owned.get(place, self._topic_id(place)) != self._topic_id(place):
            return None
        log = self.cluster.log(*place)
        self._validate(log, place)
        if not log.start <= self.positions[place] <= log.end:
            self.positions[place] = self._reset(place)
            self._epochs.pop(place, None)
        position = self.positions[place]
        entry = next(log.readable(position), None)
        if entry is not None:
            self.positions[place] = entry.offset + 1
            self._epochs[place] = entry.leader_epoch
            return FakeMessage(*place, entry=entry)
        end = self.positions[place] = max(position, log.stable_end)
        if not self.properties.get("enable.partition.eof") or self._at_end.get(place) == end:
            return None
        self._at_end[place] = end
        return FakeMessage(*place, fault=KafkaError(KafkaError._PARTITION_EOF), offset=end)

    def _validate(self, log: Log, place: Place) -> None:
        """Where the leader is another one than it was, go back to where the records end that were read."""
        epoch, leader = self._epochs.get(place), self._leaders.get(place)
        self._leaders[place] = log.leader_epoch
        if epoch is not None and leader != log.leader_epoch:
            self.positions[place] = min(self.positions[place], log.end_of_epoch(epoch))

    # -- what an application asks for ----------------------------------------------------------------------

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[Any]:
        self._use()
        places = [(each.topic, each.partition) for each in partitions]
        known = self._request("committed", lambda: self.cluster.committed(self.group, places), timeout)
        return [
            _committed(place, known[place]) if place in known else TopicPartition(*place, OFFSET_INVALID)
            for place in places
        ]

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._use()
        self.paused |= {(each.topic, each.partition) for each in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._use()
        self.paused -= {(each.topic, each.partition) for each in partitions}

    def seek(self, partition: TopicPartition) -> None:
        self._use()
        place = partition.topic, partition.partition
        if place not in self.positions:
            raise KafkaException(KafkaError(KafkaError._STATE))
        log = self.cluster.log(*place)
        logical = {OFFSET_BEGINNING: log.start, OFFSET_END: log.stable_end}
        self.positions[place] = logical.get(partition.offset, partition.offset)
        self._epochs.pop(place, None)
        if partition.leader_epoch is not None and partition.leader_epoch >= 0:
            self._epochs[place] = partition.leader_epoch
        self._leaders.pop(place, None)
        self._at_end.pop(place, None)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._use()
        self.positions = {(each.topic, each.partition): each.offset for each in partitions}
        self._at_end = {}

    def unassign(self) -> None:
        self._use()
        self.positions = {}

    def close(self) -> None:
        self._live()
        if self.is_closed:
            return
        if self.member is not None:
            if not self.is_silent:
                is_member = self.member.name in self.cluster.group(self.group).members
                self._tell("on_revoke" if is_member else "on_lost", list(self.owned))
            self._drop(list(self.owned))
            self.cluster.leave(self.group, self.member)
            self.member = None
        self.is_closed = True


def _committed(place: Place, known: Committed) -> TopicPartition:
    if known.leader_epoch is None:
        return TopicPartition(*place, known.offset, metadata=known.metadata)
    return TopicPartition(*place, known.offset, metadata=known.metadata, leader_epoch=known.leader_epoch)
