"""Detects partitions at which the service's consumer is stuck, reports them, and reads past what cannot be read.

A consumer is stuck in two ways. It reports a batch that it cannot decode, again and again. Or it reports nothing and
its position does not move, although the log has more committed records and the client's queue is empty; it takes a
while to distinguish that from a slow broker. Either way the partition is paused, /readyz names it, and a
:class:`~streamer.kafka.readers.recovery.Recovery` reads it with larger buffers until the consumer can go on.

A partition may also have no valid position at all, if ``auto.offset.reset`` is ``error``. Only an operator can set one,
so this is only reported. So is a leader that itself answers with an error, as it does while the remote tier of tiered
storage is away: the client asks again, and nothing is given up.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.kafka.dead_letters import unreadable
from streamer.kafka.readers.recovery import UNREADABLE, Finished, Recovery, Unreadable, is_by_broker
from streamer.machine import MachineError
from streamer.shortages import Shortages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from confluent_kafka import Consumer

    from streamer.health import Health
    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.kafka.records import InFlightRecord, Record
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

_STILL_S = 10.0
"""How long a position may stand still before it is looked into."""
_START_AGAIN_S = 1.0
"""The pause between two attempts to start a recovery where this machine has no thread for it."""
_REFUSED_S = 5.0
"""For how long a leader's last error holds. The client asks again twice a second."""


class _Seen(NamedTuple):
    """A fetch position, and since when it has stood there."""

    position: int
    since: float


class _Refusal(NamedTuple):
    """A leader's error instead of records, and until when it holds if it does not come again."""

    why: str
    until: float


class UnreadableWatch:
    """Knows which assigned partitions stand still; used from the loop's thread, and never waits."""

    def __init__(
        self,
        settings: ServiceSettings,
        service: Service,
        assignment: Assignment,
        *,
        metrics: Metrics,
        health: Health,
        consumer: Callable[[], Consumer],
        begin: Callable[[AssignedPartition, Record], InFlightRecord | None],
    ) -> None:
        """``begin`` takes a record in flight; it returns None where there is nothing to do for it."""
        self._consumer = consumer
        self._take_in_flight = begin
        self._group = settings.group(service.group)
        self._dead_letters = settings.topic(service.dead_letters)
        self._settings = settings
        self._service = service
        self._assignment = assignment
        self._metrics = metrics
        self._health = health
        self._shortages = Shortages(metrics, health)
        self._next_start = 0.0
        self._recoveries: dict[int, Recovery | None] = {}
        """By partition; None until it is known where to begin."""
        self._why: dict[int, str] = {}
        self._from: dict[int, int] = {}
        self._unset: dict[int, str] = {}
        self._refused: dict[int, _Refusal] = {}
        self._seen: dict[int, _Seen] = {}

    def on_error(self, number: int | None, offset: int | None, error: KafkaError) -> bool:
        """Take an error that the consumer reports of a partition; return whether it is one of those meant here."""
        partition = self._assignment.get(number)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            if partition is not None:
                self._unset[partition.partition] = error.str()
                self._tell()
            return True
        if error.code() not in UNREADABLE:
            return partition is not None and is_by_broker(error) and self._note_refusal(partition, error)
        if partition is not None and not partition.stalled:
            self._begin(partition, offset or 0, error.str())
        return True

    def _note_refusal(self, partition: AssignedPartition, error: KafkaError) -> bool:
        self._refused[partition.partition] = _Refusal(error.str(), time.monotonic() + _REFUSED_S)
        self._tell()
        return True

    def on_statistics(self, partitions: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what the consumer's statistics say of the topic's partitions, once a second."""
        now = time.monotonic()
        over = [number for number, refusal in self._refused.items() if now > refusal.until]
        for number in over:
            del self._refused[number]
        if over:
            self._tell()
        for partition in self._assignment:
            told = partitions.get(str(partition.partition))
            position = told["next_offset"] if told is not None else -1
            if told is None or partition.partition in self._refused or not _stands_still(told, partition):
                self._seen.pop(partition.partition, None)
                continue
            seen = self._seen.get(partition.partition)
            if seen is None or seen.position != position:
                self._seen[partition.partition] = _Seen(position, now)
            elif now - seen.since >= _STILL_S:
                self._begin(partition, position, f"no record for {now - seen.since:.0f} s, though there are more")

    def serve(self, submit: Callable[[list[InFlightRecord]], None]) -> None:
        """Take what is found where the consumer cannot read on, as far as there is room, and let it go on after that.

        ``submit`` is given what the pipeline has to do.
        """
        for number in list(self._recoveries):
            partition = self._assignment.get(number)
            if partition is None or not partition.known:
                continue
            if not partition.stalled:  # its consumer was sent to another place meanwhile
                self.forget([number])
                continue
            recovery = self._recoveries[number] or self._start(partition)
            while recovery and not self._assignment.is_full and (found := recovery.take()) is not None:
                if isinstance(found, Finished):
                    self._resume(partition, found.offset)
                elif isinstance(found, Unreadable):
                    self._give_up(partition, found)
                elif (in_flight := self._take_in_flight(partition, found)) is not None:
                    submit([in_flight])

    def _start(self, partition: AssignedPartition) -> Recovery | None:
        """Start a recovery; None where this machine has no thread for it just now."""
        if time.monotonic() < self._next_start:
            return None
        # Not where the client fetches: what it has fetched and not handed over may be dropped by the pause.
        start = partition.position if partition.has_position else self._from[partition.partition]
        place = TopicPartition(partition.topic, partition.partition, start)
        self._consumer().pause([place])
        try:
            recovery = Recovery(self._settings, self._service, place, log=partition.log)
        except MachineError as lack:
            self._shortages.tell(lack)
            self._next_start = time.monotonic() + _START_AGAIN_S
            return None
        self._recoveries[partition.partition] = recovery
        return recovery

    def _give_up(self, partition: AssignedPartition, found: Unreadable) -> None:
        place = TopicPartition(partition.topic, partition.partition, found.first)
        record, letter = unreadable(
            place,
            found.last,
            found.error,
            log=partition.log,
            group=self._group,
            dead_letters=self._dead_letters,
        )
        if (in_flight := self._take_in_flight(partition, record)) is not None:
            in_flight.complete([letter])
        # At once, so that the commit with the dead letter is beyond all offsets that it stands for.
        partition.reached_end(found.last + 1)

    def _resume(self, partition: AssignedPartition, offset: int) -> None:
        partition.reached_end(offset)
        place = TopicPartition(partition.topic, partition.partition, offset)
        try:
            self._consumer().seek(place)
        except KafkaException as error:  # the client is about to lose the partition, or has no leader for it
            log.warning(
                "seek beyond the unreadable batch refused, retrying", partition=partition.partition, error=str(error)
            )
            self._recoveries[partition.partition] = None
            return
        partition.stalled = False
        self._drop(partition.partition)
        self._tell()
        if not partition.paused:
            self._consumer().resume([place])

    def forget(self, partitions: Iterable[int]) -> None:
        """Give up what is under way for partitions that are no longer ours."""
        for number in partitions:
            self._drop(number)
        self._tell()

    def close(self) -> None:
        """Give up everything."""
        for number in list(self._recoveries):
            self._drop(number)

    def _begin(self, partition: AssignedPartition, offset: int, why: str) -> None:
        number = partition.partition
        partition.stalled = True
        self._recoveries[number] = None
        self._from[number] = offset
        self._why[number] = f"{partition.topic}[{number}] stands at offset {max(partition.position, offset)}: {why}"
        log.warning("partition cannot be read, trying with larger buffers", place=self._why[number])
        self._tell()

    def _drop(self, number: int) -> None:
        recovery = self._recoveries.pop(number, None)
        if recovery is not None:
            recovery.cancel()
        for known in (self._why, self._from, self._unset, self._refused, self._seen):
            known.pop(number, None)

    def _tell(self) -> None:
        self._metrics.unreadable.set(len(self._why) + len(self._unset) + len(self._refused))
        topic = self._settings.topic(self._service.input)
        details = [self._why[number] for number in sorted(self._why)]
        if details:
            details.append("offsets that cannot be read at all become one dead letter")
        details += [f"{topic}[{number}]: {refusal.why}" for number, refusal in sorted(self._refused.items())]
        if details:
            self._health.not_ready("unreadable", "; ".join(details))
        else:
            self._health.ready("unreadable")
        if self._unset:
            place = f"{topic}{sorted(self._unset)}"
            self._health.not_ready(
                "position",
                f"{place}: {next(iter(self._unset.values()))}. "
                f"auto.offset.reset is {self._settings.kafka.get('auto.offset.reset')}, so nothing is read there. Stop "
                "the group and set its offsets (kafka-consumer-groups --reset-offsets), or choose earliest or latest",
            )
        else:
            self._health.ready("position")


def _stands_still(told: Mapping[str, Any], partition: AssignedPartition) -> bool:
    """Whether there is more to fetch, nobody holds it up, and nothing waits to be handed over."""
    end = told["ls_offset"] if told["ls_offset"] >= 0 else told["hi_offset"]
    return (
        not partition.paused
        and not partition.stalled
        and told["fetch_state"] == "active"
        and told["fetchq_cnt"] == 0
        and 0 <= told["next_offset"] < end
    )
