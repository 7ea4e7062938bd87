"""Put dead letters back into the topic that they came from, each exactly once, whatever ends the attempt.

What was put back is remembered where the dead letters are: a marker (:mod:`streamer.kafka.dlq.letters`) in the same
transaction as the copies. A consumer group's offsets would not do. Filters leave gaps, so one position says
too little; a commit's metadata, which could list the rest, is bounded (4,096 bytes by default); and a broker
forgets the offsets of a group without members after 7 days, half as long as dead letters are kept by default:
what was put back in the first week would be put back again in the second. A marker is never gone before what
it lists, and the set of markers has no bound but the topic's own.

The steps, and what a crash right after each leaves behind:

1. *init*. There is one transactional.id for each prefix and input topic, whichever host runs the redrive. The
   coordinator fences an earlier holder, and aborts or completes the transaction that it left open: from here on
   every marker that will ever count, but for our own, is in the log. A crash leaves nothing open.
2. *ends*. The ends of the dead letter partitions are asked for after 1, the undecided part included, and not
   the last stable offset: a service's open transaction holds that back, and a marker behind it would be missed.
   A crash leaves nothing.
3. *read*. Markers first, then dead letters, as read_committed up to those ends, waiting where a transaction is
   open. All dead letters that the filter takes and no marker lists go on in batches. A crash leaves nothing.
4. *begin* and *produce*: the copies, to their original partition, and one marker for each dead letter
   partition of the batch, to that partition. A crash leaves an open transaction: the next init aborts it, else
   the coordinator does after transaction.timeout.ms; neither copies nor markers are ever seen.
5. *commit*. When the coordinator has written its decision, copies and markers become visible, all of them,
   whether we live or not: the next init waits for that, and 3 finds the markers. A crash before the decision is
   as after 4.

Two redrives at once: the init of the later one fences the earlier, which stops at its next step 4 or 5 with an
error; what it had committed by then the later one finds in 3. Any other fault that does not pass ends the
run; running it again goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer

from streamer.events import now
from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.produce import enqueue
from streamer.kafka.client.refusals import refused
from streamer.kafka.dlq.letters import GROUP, MARKER_HEADER, DeadLetterError, DeadLetterTopic, State, encode_marker
from streamer.kafka.records import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.kafka.dlq.letters import DeadLetter, Filter
    from streamer.settings import Connection

REDRIVEN_FROM = "dlq.redriven_from"
"""Header of a copy: ``<dead letter topic>/<partition>/<offset>``."""

_BATCH_RECORDS = 500
_BATCH_BYTES = 4 << 20
_CALL_TIMEOUT_S = 2.0
_GIVE_UP_S = 25.0
"""How long init, delivery and commit are each waited for; the last two fit into transaction.timeout.ms."""

_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)
_ANY_PARTITION = -1


@dataclass(slots=True)
class Report:
    """What a redrive did, or would do, with the dead letters that its filter takes."""

    redriven: Counter[str] = field(default_factory=Counter)
    """By reason."""
    left: Counter[State] = field(default_factory=Counter)
    """Those that it left alone."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason: the topic would not take them, too large for its max.message.bytes."""


def redrive(
    settings: Connection,
    topic: str,
    wanted: Filter,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    batch_records: int = _BATCH_RECORDS,
) -> Report:
    """Put back what is pending of ``wanted``, at most ``limit`` dead letters, and say what was done.

    ``topic`` is the input topic's name without prefix. ``dry_run`` only reads, and disturbs no redrive that is
    under way. Raises :class:`DeadLetterError`.
    """
    run = _Run(wanted, limit)
    with contextlib.closing(DeadLetterTopic(settings, topic, role="dlq-redrive")) as dead_letters:
        if dry_run:
            for letter in run.pending(dead_letters.letters(dead_letters.spans())):
                run.report.redriven[letter.reason] += 1
            return run.report
        while True:
            copier = _Copier(settings, topic, dead_letters)
            copier.init()
            letters = dead_letters.letters(dead_letters.spans(IsolationLevel.READ_UNCOMMITTED))
            try:
                for batch in _batches(run.pending(letters), batch_records):
                    copier.copy(batch)
                    run.settle(batch)
            except _TooLargeError as error:
                # librdkafka 2.16 loses count of its sequence numbers here, so it takes a new producer; and whoever
                # inits must read again, since another redrive may have been under way.
                run.refuse(error.letter)
            else:
                return run.report


class _Run:
    """What one redrive has done so far, over all its attempts."""

    def __init__(self, wanted: Filter, limit: int | None) -> None:
        self.report = Report()
        self._wanted = wanted
        self._limit = limit
        self._done: set[tuple[int, int]] = set()
        self._too_large: set[tuple[int, int]] = set()

    def pending(self, letters: Iterator[DeadLetter]) -> Iterator[DeadLetter]:
        """Go through what is to be put back, up to the limit, and count what is not."""
        self.report.left.clear()
        self.report.refused.clear()
        taken = len(self._done)
        for letter in letters:
            place = _place(letter)
            if not self._wanted.takes(letter) or place in self._done:
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
        """Account for what is committed."""
        self._done.update(map(_place, batch))
        self.report.redriven.update(letter.reason for letter in batch)

    def refuse(self, letter: DeadLetter) -> None:
        """Leave out from now on what the topic does not take."""
        self._too_large.add(_place(letter))


def _place(letter: DeadLetter) -> tuple[int, int]:
    return letter.record.partition, letter.record.offset


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
    """A copy was refused for its size; the transaction is left to the next init.

    Aborting it with a record refused and others waiting blocks librdkafka 2.16 until the call's timeout.
    """

    def __init__(self, letter: DeadLetter) -> None:
        super().__init__(letter.record.place)
        self.letter = letter


class _Copier:
    """The transactional producer of a redrive."""

    def __init__(self, settings: Connection, topic: str, dead_letters: DeadLetterTopic) -> None:
        # One id for a topic: the redrives of it must fence each other wherever they run.
        properties = config.producer(settings, settings.topic(f"{GROUP}-{topic}"), {})
        # A broker refuses whole batches: with one record in each, it is that record which is too large.
        self._producer: Producer = config.make_client(Producer, {**properties, "batch.num.messages": 1})
        self._transactional_id = str(properties["transactional.id"])
        self._partitions = dead_letters.partitions_of(dead_letters.source)
        self._dead_letters = dead_letters

    def init(self) -> None:
        """Step 1."""
        try:
            _until_answered(self._producer.init_transactions)
        except KafkaException as error:
            raise self._explained(error) from None

    def copy(self, batch: Sequence[DeadLetter]) -> None:
        """Take a batch through steps 4 and 5. Raises :class:`_TooLargeError`."""
        try:
            self._producer.begin_transaction()
            self._fill(batch)
            _until_answered(self._producer.commit_transaction)
        except KafkaException as error:
            self._abort()
            raise self._explained(error) from None
        except KeyboardInterrupt:
            self._abort()
            raise

    def _fill(self, batch: Sequence[DeadLetter]) -> None:
        refusals: list[tuple[DeadLetter | None, KafkaError]] = []
        redriven: dict[int, list[int]] = defaultdict(list)
        for letter in batch:
            record = letter.record
            redriven[record.partition].append(record.offset)
            came_from = f"{record.topic}/{record.partition}/{record.offset}".encode()
            # Where the key's other records are, whichever partitioner put them there.
            partition = letter.partition if letter.partition in self._partitions else _ANY_PARTITION
            headers = (*letter.original_headers, (REDRIVEN_FROM, came_from))
            copy = Output(self._dead_letters.source, record.key, record.value, headers)
            self._produce(copy, partition, letter, refusals)
        for partition, offsets in redriven.items():
            marker = encode_marker(offsets, now())
            output = Output(self._dead_letters.name, None, marker, ((MARKER_HEADER, b"redriven"),))
            self._produce(output, partition, None, refusals)
        self._await_delivery(refusals)

    def _produce(
        self,
        output: Output,
        partition: int,
        letter: DeadLetter | None,
        refusals: list[tuple[DeadLetter | None, KafkaError]],
    ) -> None:
        def delivered(error: KafkaError | None, _message: object) -> None:
            # What waited behind a refused record is purged, and may be told of first.
            if error is not None and error.code() not in _PURGED:
                refusals.append((letter, error))

        try:
            enqueue(self._producer, output, delivered, partition=partition)
        except KafkaException as error:
            if letter is not None and error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise _TooLargeError(letter) from None
            raise

    def _await_delivery(self, refusals: Sequence[tuple[DeadLetter | None, KafkaError]]) -> None:
        deadline = time.monotonic() + _GIVE_UP_S
        # What is behind a refused record stays where it is until the abort.
        while (left := len(self._producer)) and not refusals and time.monotonic() < deadline:
            self._producer.poll(0.01)
        for letter, error in refusals:
            if letter is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise _TooLargeError(letter)
        if refusals:
            raise KafkaException(refusals[0][1])
        if left:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{left} records not acknowledged in time"))

    def _abort(self) -> None:
        # Best effort, so that readers of the topic need not wait for the next init or the coordinator.
        with contextlib.suppress(KafkaException):
            self._producer.abort_transaction(_CALL_TIMEOUT_S)

    def _explained(self, error: KafkaException) -> Exception:
        if error.args[0].code() in _FENCED:
            return DeadLetterError("another redrive of the same topic took over, and goes on with what is left")
        if resource := refused(error.args[0]):
            topics = (self._dead_letters.source, self._dead_letters.name)
            at_topics = resource is Resource.TOPIC
            names = self._dead_letters.unwritable(*topics) if at_topics else [self._transactional_id]
            return self._dead_letters.failed(error, Operation.WRITE, *names)
        return DeadLetterError(f"{self._dead_letters.failed(error)}; running it again goes on where this one stopped")


def _until_answered(call: Callable[[float], object]) -> None:
    """Call ``init_transactions`` or ``commit_transaction``, which go on from where they were when they timed out."""
    deadline = time.monotonic() + _GIVE_UP_S
    while True:
        try:
            call(_CALL_TIMEOUT_S)
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise
        else:
            return
