"""Copy dead letters back into the topic that they came from, each exactly once, however often a run is interrupted.

What was redriven is recorded in the dead-letter topic: a marker (:mod:`streamer.kafka.dlq.letters`) in the same
transaction as the copies. A consumer group's committed offsets cannot record it. Filters leave gaps, so one offset is
not enough; a commit's metadata, which could list the rest, is bounded (4,096 bytes by default); and a broker deletes
the offsets of a group without members after 7 days, half of the default retention of dead letters: those redriven in
the first week would be redriven again in the second. A marker is never deleted before what it lists, and the number of
markers is bounded only by the topic itself.

The steps, and what a crash right after each leaves behind (the producer's own are those of
:mod:`streamer.kafka.commit.transactions`):

1. *init*. There is one transactional.id for each dead-letter topic, whichever host runs the redrive. The
   coordinator fences an earlier redrive, and aborts or completes the transaction that it left open: from here on
   every marker that will ever count, except our own, is in the topic. A crash leaves nothing open.
2. *end offsets*. They are requested after 1 and are the high watermarks, not the last stable offsets: an open
   transaction of a service holds back the last stable offset, and a marker after it would be missed. A crash leaves
   nothing.
3. *read*. Markers first, then dead letters, as read_committed up to those offsets, waiting where a transaction is
   open. All dead letters that the filter selects and no marker lists go on in batches. A crash leaves nothing.
4. *begin* and *produce*: the copies, to their original partition, and one marker for each dead letter
   partition of the batch, to that partition. A crash leaves an open transaction: the next init aborts it, otherwise
   the coordinator does after transaction.timeout.ms; neither copies nor markers become visible.
5. *commit*. Once the coordinator has written its decision, copies and markers become visible together, even if this
   process dies: the next init waits for that, and 3 finds the markers. A crash before the decision has the same effect
   as after 4.

Several groups may read the same input topic (``group_suffix``), and a record that one of them could not process may
have been processed by the others. Each dead letter names its group, and so does the copy. A service skips a copy that
is for another group, so that no query is reranked twice. A group that has no members and no committed offsets would
never process its copies, while the marker says that they were redriven; so a redrive for such a group is refused before
anything is written, until ``to_group`` names another one. In a compacted topic it does not skip it: there the copy
replaces the original for groups that have not read it yet, and storing the same upload again changes nothing. Markers
list offsets of the dead-letter topic, so the dead letters that two groups wrote about one record are redriven
separately.

Two redrives at the same time: the init of the later one fences the earlier one, which stops at its next step 4 or 5
with an error; what it had committed by then is found by the later one in 3. Any other permanent fault ends the run;
running it again continues where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka import IsolationLevel

from streamer.events import now
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.commit.outcomes import Batch, FencedError, RestartError, TransactionError
from streamer.kafka.commit.transactions import Transactions
from streamer.kafka.dead_letters import REDRIVEN_FROM
from streamer.kafka.dlq.letters import MARKER_HEADER, DeadLetterError, DeadLetterTopic, State, encode_marker
from streamer.kafka.outputs import leaves_time
from streamer.kafka.records import REDRIVEN_FOR, InFlightRecord, Output
from streamer.settings import SettingsError
from streamer.topology import DLQ_REDRIVE, SERVICES, redrive_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from streamer.kafka.dlq.letters import DeadLetter, Filter
    from streamer.kafka.records import Record
    from streamer.settings import Connection

_BATCH_RECORDS = 500
_BATCH_BYTES = 4 << 20
_GIVE_UP_S = 25.0
"""How long the start and each transaction may take, all attempts together."""
_RETRY_AFTER_S = 0.1
_ANY_PARTITION = -1


@dataclass(slots=True)
class Report:
    """What a redrive did, or would do, with the dead letters that its filter selects."""

    redriven: Counter[str] = field(default_factory=Counter)
    """By reason."""
    left: Counter[State] = field(default_factory=Counter)
    """Those that are not redriven, by their state."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason: those that are larger than the topic's max.message.bytes."""


def redrive(
    settings: Connection,
    topic: str,
    wanted: Filter,
    *,
    limit: int | None = None,
    to_group: str | None = None,
    dry_run: bool = False,
    batch_records: int = _BATCH_RECORDS,
) -> Report:
    """Redrive the pending dead letters that ``wanted`` selects, at most ``limit``, and report what was done.

    ``topic`` is the input topic's name without prefix. ``to_group``: full name of the consumer group that shall process
    the copies, instead of the one that wrote the dead letters. ``dry_run`` only reads, and does not interrupt a running
    redrive. Raises :class:`DeadLetterError`, and :class:`SettingsError` where a group would not process its copies.
    """
    run = _Run(wanted, limit)
    with contextlib.closing(DeadLetterTopic(settings, topic, DLQ_REDRIVE)) as dead_letters:
        groups = _Groups(dead_letters, to_group, is_compacted=_is_compacted(topic))
        # All of them first, so that nothing is redriven where one is refused.
        for letter in run.pending(dead_letters.letters(dead_letters.spans())):
            groups.of(letter)
            if dry_run:
                run.report.redriven[letter.reason] += 1
        if dry_run:
            return run.report
        while True:
            copier = _Copier(settings, dead_letters, groups)
            copier.init()
            letters = dead_letters.letters(dead_letters.spans(IsolationLevel.READ_UNCOMMITTED))
            try:
                for batch in _batches(run.pending(letters), batch_records):
                    copier.copy(batch)
                    run.settle(batch)
            except _TooLargeError as error:
                # It takes a new producer (Transactions says why), and whoever inits must read again, since another
                # redrive may have been under way.
                run.refuse(error.places)
            else:
                return run.report


def _is_compacted(topic: str) -> bool:
    return any(service.input == topic and service.input_is_compacted for service in SERVICES.values())


class _Groups:
    """For which group each dead letter is redriven."""

    def __init__(self, dead_letters: DeadLetterTopic, to_group: str | None, *, is_compacted: bool) -> None:
        if to_group is not None and is_compacted:
            raise SettingsError(f"--to-group: every consumer group processes what is redriven to {dead_letters.source}")
        self._dead_letters = dead_letters
        self._to_group = to_group
        self._checked = {""} if not is_compacted else None

    def of(self, letter: DeadLetter) -> str:
        """Return the group's full name; empty: every group. Raises :class:`SettingsError` if it is not there."""
        group = self._to_group or letter.group
        if self._checked is not None and group not in self._checked:
            if not self._dead_letters.is_read_by(group):
                raise SettingsError(
                    f"nothing is redriven: the consumer group {group} has no members and no committed offsets, so "
                    "nobody would process the copies; start its services, or name another group with --to-group"
                )
            self._checked.add(group)
        return group


class _Run:
    """The progress of one redrive, over all its attempts."""

    def __init__(self, wanted: Filter, limit: int | None) -> None:
        self.report = Report()
        self._wanted = wanted
        self._limit = limit
        self._done: set[tuple[int, int]] = set()
        self._too_large: set[tuple[int, int]] = set()

    def pending(self, letters: Iterator[DeadLetter]) -> Iterator[DeadLetter]:
        """Go through the dead letters to redrive, up to the limit, and count the others."""
        self.report.left.clear()
        self.report.refused.clear()
        taken = len(self._done)
        for letter in letters:
            place = _place(letter)
            if not self._wanted.matches(letter) or place in self._done:
                continue
            if letter.state is not State.PENDING:
                self.report.left[letter.state] += 1
            elif place in self._too_large:
                self.report.refused[letter.reason] += 1
            elif taken == self._limit:
                return
            else:
                taken += 1
                yield letter

    def settle(self, batch: Sequence[DeadLetter]) -> None:
        """Count a batch that is committed."""
        self._done.update(map(_place, batch))
        self.report.redriven.update(letter.reason for letter in batch)

    def refuse(self, places: Collection[tuple[int, int]]) -> None:
        """Skip these from now on: the topic rejects them."""
        self._too_large.update(places)


def _place(letter: DeadLetter) -> tuple[int, int]:
    return _place_of(letter.record)


def _place_of(record: Record) -> tuple[int, int]:
    return record.partition, record.offset


def _batches(letters: Iterator[DeadLetter], most: int) -> Iterator[list[DeadLetter]]:
    batch: list[DeadLetter] = []
    size = 0
    for letter in letters:
        batch.append(letter)
        size += letter.record.size
        if len(batch) >= most or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _TooLargeError(Exception):
    """The topic rejects a copy because of its size; the transaction is left to the next init."""

    def __init__(self, places: Collection[tuple[int, int]]) -> None:
        super().__init__(f"refused: {places}")
        self.places = places


class _Copier:
    """Copies batches of dead letters in transactions."""

    def __init__(self, settings: Connection, dead_letters: DeadLetterTopic, groups: _Groups) -> None:
        # Not an instance's id: the redrives of one topic must fence each other wherever they run.
        self._transactions = Transactions(
            settings,
            redrive_id(dead_letters.name),
            role=DLQ_REDRIVE.role,
            # A broker refuses whole batches: with one record in each, it is that record which is too large.
            properties={"batch.num.messages": 1},
            restart_when_rejected=True,
        )
        self._partitions = dead_letters.partitions_of(dead_letters.source)
        self._dead_letters = dead_letters
        self._groups = groups
        self._retention_ms = dead_letters.retention_ms(dead_letters.source)

    def init(self) -> None:
        """Step 1."""
        self._retry(self._transactions.init)

    def copy(self, batch: Sequence[DeadLetter]) -> None:
        """Take a batch through steps 4 and 5. Raises :class:`_TooLargeError`."""
        records = self._with_outputs(batch)
        self._retry(lambda: self._transactions.run(Batch(records)))

    def _with_outputs(self, batch: Sequence[DeadLetter]) -> list[InFlightRecord]:
        """Give each dead letter its copy, and the last one of each partition the marker for all of them."""
        redriven: dict[int, list[int]] = defaultdict(list)
        last: dict[int, InFlightRecord] = {}
        records = []
        for letter in batch:
            record = letter.record
            redriven[record.partition].append(record.offset)
            last[record.partition] = in_flight = InFlightRecord(record, lambda: None)
            in_flight.complete([self._copy_of(letter)])
            records.append(in_flight)
        for partition, in_flight in last.items():
            marker = encode_marker(redriven[partition], now())
            header = (MARKER_HEADER, b"redriven")
            output = Output(self._dead_letters.name, None, marker, (header,), partition=partition)
            in_flight.complete([*(in_flight.outputs or ()), output])
        return records

    def _copy_of(self, letter: DeadLetter) -> Output:
        record = letter.record
        came_from = f"{record.topic}/{record.partition}/{record.offset}".encode()
        headers = (*letter.original_headers, (REDRIVEN_FROM, came_from))
        if group := self._groups.of(letter):
            headers = (*headers, (REDRIVEN_FOR, group.encode()))
        # Where the key's other records are, whichever partitioner put them there.
        partition = letter.partition if letter.partition in self._partitions else _ANY_PARTITION
        return Output(
            self._dead_letters.source, record.key, record.value, headers, partition, timestamp=self._time_of(letter)
        )

    def _time_of(self, letter: DeadLetter) -> int | None:
        """Return the original's time, where retention leaves the copy alone until it has been read."""
        now_ms = now().timestamp() * 1_000
        if letter.timestamp is None or letter.timestamp > now_ms:
            return None
        return letter.timestamp if leaves_time(letter.timestamp, self._retention_ms, now_ms) else None

    def _retry(self, call: Callable[[], None]) -> None:
        """Call until it succeeds, fails permanently, or has been retried for too long."""
        deadline = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                call()
            except FencedError:
                raise DeadLetterError(
                    "another redrive of the same topic has taken over and continues with the rest"
                ) from None
            except RestartError as error:
                if error.rejected:
                    raise _TooLargeError({_place_of(each.record) for each, _ in error.rejected}) from None
                raise self._explained(error) from None
            except TransactionError as error:
                if error.refused is not None or time.monotonic() > deadline:
                    self._transactions.close()
                    raise self._explained(error) from None
                time.sleep(_RETRY_AFTER_S)
            except KeyboardInterrupt:
                self._transactions.close()
                raise
            else:
                return

    def _explained(self, error: TransactionError) -> Exception:
        if error.refused is Resource.TOPIC:
            names = self._dead_letters.unwritable(self._dead_letters.source, self._dead_letters.name)
            return self._dead_letters.lacking(Resource.TOPIC, Operation.WRITE, *names)
        if error.refused is not None:
            return DeadLetterError(str(error))
        return DeadLetterError(
            f"{self._dead_letters.unreachable(str(error))}; running it again continues where this one stopped"
        )
