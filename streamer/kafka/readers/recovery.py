"""Reads with larger buffers what a service's consumer cannot decode, and finds out where it ends.

librdkafka (2.16) reports a batch that it cannot decompress by an error that bears the batch's first offset, does not
move on, and fetches the same batch again, for ever; one that it decompresses and cannot parse it fetches again without
a word. Which offset such a batch ends with it never says. That is found by bisection: a fetch from any offset inside a
batch brings the whole batch, and so fails likewise; a fetch from any later offset brings something else.

A broker's own error proves nothing: the remote tier of its log may be away. It is asked again, for as long as it takes.
Silence alone proves nothing either, since a broker may be unreachable or throttle us. It counts as a failure only if a
request for the end of the same log is answered at once, before and after it, and, before any offset is given up, at
both ends of the range.

A :class:`Recovery` works in a thread of its own, which may wait for brokers, and hands over through a short queue.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.records import record_of
from streamer.machine import machine_error, start

if TYPE_CHECKING:
    from confluent_kafka import Message

    from streamer.kafka.records import Record
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

UNREADABLE = (
    KafkaError._BAD_COMPRESSION,
    KafkaError._BAD_MSG,
    KafkaError._NOT_IMPLEMENTED,  # an unknown codec, or an unknown format
    KafkaError._CRIT_SYS_RESOURCE,  # no memory for a buffer of the length that the batch asks for
    KafkaError.MSG_SIZE_TOO_LARGE,
)
"""The errors that a consumer reports of a batch that it cannot decode."""


def is_by_broker(error: KafkaError) -> bool:
    """Tell whether a broker has answered with this error, and not the client: it may answer otherwise later."""
    return error.code() >= KafkaError.UNKNOWN and not error.fatal()


_ATTEMPTS = 3
_RETRY_S = 1.0
_ANSWER_S = 10.0
"""How long an answer may take."""
_SILENCE_S = 3.0
"""How long an answer may take while the end of a batch is searched for; the end is then held to the longer time."""
_SEARCH_S = 20.0
"""How long may be searched with the service's own limits for where they suffice. Where an answer is longer than
``receive.message.max.bytes`` the client drops the connection, each time."""
_MOST_AT_ONCE = 1_000
"""Offsets that are read where that search finds nothing."""
_POLL_S = 0.2
_QUEUE_BYTES = 16 << 20
"""Bytes of records that wait for the service before no other is taken: one may be as large as the batch."""
_FULL_WAIT_S = 0.02
_SILENT = "no client of ours can parse the batch: its answer brings no record, no error and no end"


class Unreadable(NamedTuple):
    """The offsets ``first`` to ``last`` that no client of ours can read, and why."""

    first: int
    last: int
    error: str


class Finished(NamedTuple):
    """The service's own consumer can go on at this offset."""

    offset: int


class _Failure(NamedTuple):
    """The batch that begins at ``base`` cannot be decoded; None where the client does not say which one that is."""

    base: int | None
    error: str


class _End(NamedTuple):
    """Nothing is readable from ``offset`` on: the log ends, or a transaction is open."""

    offset: int


class Recovery:
    """Brings what can be read of one batch at which the service's consumer is stuck."""

    def __init__(self, settings: ServiceSettings, service: Service, partition: TopicPartition, *, log: str) -> None:
        """``partition`` says where to begin, by the topic's full name; ``log`` goes into the records.

        Raises :class:`~streamer.machine.MachineError` if this machine has no thread for it.
        """
        self._settings = settings
        self._service = service
        self._topic, self._partition, self._next = partition.topic, partition.partition, partition.offset
        self._log = log
        self._give_up_at = math.inf
        self._cancelled = threading.Event()
        self._found: queue.SimpleQueue[Record | Unreadable | Finished] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        start(threading.Thread(target=self._run, name=f"recovery-{self._partition}", daemon=True))

    def take(self) -> Record | Unreadable | Finished | None:
        """Return the next that was found, in offset order; None where nothing is there yet. Never waits."""
        try:
            found = self._found.get_nowait()
        except queue.Empty:
            return None
        with self._lock:
            self._waiting_bytes -= _size(found)
        return found

    def cancel(self) -> None:
        """Give up: nobody takes any more."""
        self._cancelled.set()

    def _run(self) -> None:
        failed = ""
        while not self._cancelled.is_set():
            try:
                with closing(config.make_client(Consumer, config.recoverer(self._settings, self._service))) as consumer:
                    end = self._recover(consumer)
            except Exception as error:
                if not isinstance(error, KafkaException) and machine_error(error) is None:
                    raise
                if str(error) != failed:  # a repetition is no news
                    failed = str(error)
                    log.warning("recovery failed, trying again", partition=self._partition, error=failed)
                self._cancelled.wait(_RETRY_S)
            else:
                self._put(Finished(end))
                return

    def _recover(self, consumer: Consumer) -> int:
        """Put what can be read from the stuck position to the end of its batch; return where that ends."""
        failures = 0
        while not self._cancelled.is_set():
            outcome = self._fetch(consumer, self._next, _ANSWER_S)
            if isinstance(outcome, _Failure):
                failures += 1
                if failures < _ATTEMPTS and outcome.base is not None:  # silence was asked about again and again already
                    self._cancelled.wait(_RETRY_S)
                    continue
                end = self._end_of_batch(consumer, self._next, outcome)
                first = max(self._next, outcome.base or 0)
                if end > first:
                    self._put(Unreadable(first, end - 1, outcome.error))
                return end
            failures = 0
            if isinstance(outcome, _End):
                return max(self._next, outcome.offset)
            if outcome is None:
                continue
            if (outcome.offset() or 0) < self._next:
                return self._next  # the log was cut off: what to do about that is for the service to say
            enough = self._end_for_the_service()
            end = min(self._log_end(consumer), self._next + _MOST_AT_ONCE) if enough is None else enough
            # Not less than one record, lest a fault that comes and goes keep both consumers at the same place.
            end = max(end, (outcome.offset() or 0) + 1)
            if self._deliver(consumer, self._next, end):
                return min(end, self._next)
        return self._next

    def _end_for_the_service(self) -> int | None:
        """Return from where on the service's own buffers do; None where its limits let no answer through at all."""
        with closing(config.make_client(Consumer, config.peeker(self._settings, self._service))) as narrow:
            self._give_up_at = time.monotonic() + _SEARCH_S
            try:
                return self._end_of_batch(narrow, self._next, self._answer(narrow, self._next, _ANSWER_S))
            except (KafkaException, TimeoutError):
                return None
            finally:
                self._give_up_at = math.inf

    def _deliver(self, consumer: Consumer, first: int, end: int) -> bool:
        """Put the records from ``first`` up to ``end``; False where the reading broke off before that."""
        consumer.assign([TopicPartition(self._topic, self._partition, first)])
        silent_s = 0.0
        while self._next < end and silent_s < _ANSWER_S and not self._cancelled.is_set():
            message = consumer.poll(_POLL_S)
            if message is None:
                silent_s += _POLL_S
                continue
            silent_s = 0.0
            error = message.error()
            if error is None:
                record = record_of(
                    message,
                    log=self._log,
                    group=self._settings.group(self._service.group),
                    dead_letters=self._settings.topic(self._service.dead_letters),
                )
                if first <= record.offset < end:
                    self._put(record)
                self._next = record.offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._next = max(self._next, message.offset() or 0)  # nothing readable is left before it
                return True
            elif error.code() in UNREADABLE:
                return False
        return self._next >= end

    def _end_of_batch(self, consumer: Consumer, first: int, failure: Message | _Failure | _End | None) -> int:
        """Return the first offset that is not in the batch at ``first``, where ``failure`` is what came from there.

        That is ``first`` itself where it is no failure.
        """
        while isinstance(failure, _Failure) and not self._cancelled.is_set():
            end = self._bisect(consumer, first, failure)
            if self._fails_alike(consumer, end - 1, failure, _ANSWER_S):
                return end
            failure = self._answer(consumer, first, _ANSWER_S)
        return first

    def _bisect(self, consumer: Consumer, first: int, failure: _Failure) -> int:
        end = self._log_end(consumer)
        inside, step = first, 1
        while inside + step < end:
            if self._fails_alike(consumer, inside + step, failure, _SILENCE_S):
                inside, step = inside + step, 2 * step
            else:
                end = inside + step
        while end - inside > 1:
            middle = (inside + end) // 2
            if self._fails_alike(consumer, middle, failure, _SILENCE_S):
                inside = middle
            else:
                end = middle
        return end

    def _fails_alike(self, consumer: Consumer, offset: int, failure: _Failure, patience: float) -> bool:
        outcome = self._answer(consumer, offset, patience)
        # An unknown format is named once, at its first offset, and passed over in silence at the others.
        return isinstance(outcome, _Failure) and (outcome.base is None or outcome.base == failure.base)

    def _answer(self, consumer: Consumer, offset: int, patience: float) -> Message | _Failure | _End | None:
        """Fetch until it is clear what is at ``offset``; None where nobody waits for it any more."""
        while not self._cancelled.is_set():
            outcome = self._fetch(consumer, offset, patience)
            if outcome is not None:
                return outcome
            if time.monotonic() > self._give_up_at:
                raise TimeoutError
        return None

    def _fetch(self, consumer: Consumer, offset: int, patience: float) -> Message | _Failure | _End | None:
        """Return what comes first from ``offset`` on; None where it is not clear, since the broker may be away."""
        outcome = self._ask(consumer, offset, patience)
        if outcome is not None or self._cancelled.is_set():
            return outcome
        # The same broker, asked for the end of the same log, answers; asked for this once more, it does not.
        for _ in range(2):
            end = self._ask(consumer, self._log_end(consumer), patience)
            again = self._ask(consumer, offset, patience) if end is not None else None
            if end is None or again is not None:
                return again
        return _Failure(None, _SILENT)

    def _log_end(self, consumer: Consumer) -> int:
        partition = TopicPartition(self._topic, self._partition)
        return int(consumer.get_watermark_offsets(partition, _ANSWER_S, cached=False)[1])

    def _ask(self, consumer: Consumer, offset: int, patience: float) -> Message | _Failure | _End | None:
        consumer.assign([TopicPartition(self._topic, self._partition, offset)])
        for _ in range(int(patience / _POLL_S)):
            message = consumer.poll(_POLL_S)
            if self._cancelled.is_set():
                return None
            if message is None:
                continue
            error = message.error()
            if error is None:
                return message
            if error.code() == KafkaError._PARTITION_EOF:
                return _End(message.offset() or 0)
            if error.code() in UNREADABLE:
                return _Failure(message.offset(), error.str())
            if is_by_broker(error):
                raise KafkaException(error)
        return None

    def _put(self, found: Record | Unreadable | Finished) -> None:
        while self._waiting_bytes > _QUEUE_BYTES and not self._cancelled.is_set():
            self._cancelled.wait(_FULL_WAIT_S)
        with self._lock:
            self._waiting_bytes += _size(found)
        self._found.put(found)


def _size(found: Record | Unreadable | Finished) -> int:
    return 0 if isinstance(found, Unreadable | Finished) else found.size
