"""One transaction: outputs produced and input offsets committed, together or not at all.

The steps, and what a crash right after each leaves behind:

1. *init* (once per start, and after a fatal error). The coordinator raises the epoch of our transactional.id,
   which fences any earlier producer with that id, and aborts or completes the transaction that it left open. A crash
   here leaves nothing open.
2. *begin*. Local to the client. A crash leaves nothing.
3. *send offsets*, with the consumer's group metadata, while the outputs are on their way: the group coordinator
   refuses them from a member of an earlier generation, so a zombie that lost its partitions cannot commit. A
   crash leaves an open transaction: the next init of this id aborts it, otherwise the coordinator does after
   transaction.timeout.ms; a fetch of the group's offsets waits until then. The records are processed again.
4. *produce*. Outputs and dead letters are in their partitions, each acknowledged, but read_committed consumers do
   not see them. A crash has the same effect as after 3.
5. *commit*. Once the coordinator has written its decision, offsets and outputs become visible together, even if
   this process dies. A crash before the decision has the same effect as after 3; a crash after it loses nothing:
   the next owner starts at the committed offsets.

After each step, and after the embedder's store write before them, there is a fault point at which a test kills the
process (:mod:`streamer.faults`). A redrive, which belongs to no group, skips step 3.

Outcomes for the caller: :meth:`Transactions.run` returned: committed. :class:`AbortedError`: the transaction was
aborted; the same outputs can be sent again in a new transaction, since they are still in memory and no offset was
committed. :class:`OutcomeUnknownError`: the commit or abort was not acknowledged in time; call
again with the same batch, which only repeats that request. :class:`RestartError`: the producer is unusable and
whether its last transaction was committed is unknown; make a new one and fetch the group's committed
offsets, which show it. :class:`FencedError`: another process uses our transactional.id; this one must stop.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
import weakref
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from streamer.faults import FaultPoint, reach
from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.commit.outcomes import (
    AbortedError,
    Batch,
    FencedError,
    OutcomeUnknownError,
    RestartError,
    TransactionError,
    is_fatal_to_producer,
)
from streamer.kafka.records import enqueue
from streamer.machine import MachineError, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamer.kafka.records import InFlightRecord, Output
    from streamer.settings import Connection, ServiceSettings
    from streamer.topology import Service

T = TypeVar("T")

log = structlog.get_logger()

CALL_TIMEOUT_S = 2.0
"""Timeout of a single request; after it the request is repeated, and the loop polls its consumer in between."""
_DELIVERY_TIMEOUT_S = 5.0
_HURRIED_TIMEOUT_S = 0.8
_HUNG_AFTER_S = 3.0
"""How long a request may exceed its own timeout. send_offsets_to_transaction was seen to hang forever when its broker
went down (librdkafka 2.16): the producer is abandoned then, and a new one fences it."""
_BLOCKED_S = 10.0
"""How long a coordinator may take to end the last transaction of an id before another id is taken."""
_REFUSED_BLOCKED_S = 1.0
"""The same where a topic has just refused our timestamps, and so perhaps the marker's."""
_UNKNOWN_S = 30.0
"""How long the end of a transaction may stay unknown; then the producer is replaced, and the group's offsets know."""

_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)


class _State(Enum):
    """The state of the current transaction, from which a call that timed out is resumed."""

    NONE = auto()
    COMMITTING = auto()
    ABORTING = auto()


class Transactions:
    """A transactional producer, one transaction at a time, used from one thread."""

    def __init__(
        self,
        settings: Connection,
        transactional_id: str,
        *,
        role: str,
        group: str | None = None,
        properties: Mapping[str, Any] | None = None,
        restart_when_rejected: bool = False,
    ) -> None:
        """``transactional_id`` and ``group``, whose offsets are committed, are full names.

        ``role`` says whose privileges are missing where the cluster refuses something; ``properties`` (callbacks
        among them) win over ours. With ``restart_when_rejected`` a record that a broker never takes is a
        :class:`RestartError` at once, and the transaction is left to the next init: aborting it while others are
        queued after the rejected one blocks librdkafka 2.16 until the call's timeout, and it loses count of its
        sequence numbers.
        """
        self._properties = {**config.producer(settings, transactional_id), **(properties or {})}
        self._group = group
        self._refusals = Refusals(settings, role)
        self._restart_when_rejected = restart_when_rejected
        self._touched: frozenset[str] = frozenset()
        self._state = _State.NONE
        self._initialised = self._is_lost = self._is_outdated = False
        self._bounded = BoundedCalls("transactions")
        self._call_timeout = CALL_TIMEOUT_S
        self._delivery_timeout = _DELIVERY_TIMEOUT_S
        self._abort_cause = AbortedError("")
        self._clock_refused, self._broker_refused = "", False
        self._blocked_since: float | None = None
        self._unknown_since: float | None = None
        self._first_id = self.transactional_id
        self._producer: Producer = config.make_client(Producer, self._properties)

    @classmethod
    def of_service(
        cls,
        settings: ServiceSettings,
        service: Service,
        callbacks: Mapping[str, Callable[..., None]],
        *,
        number: int = 0,
    ) -> Transactions:
        """Make a producer of an instance; ``number`` tells its producers apart, which take turns."""
        group = settings.group(service.group)
        transactional_id = f"{group}-{settings.instance_id}" + (f"#{number}" if number else "")
        return cls(settings, transactional_id, role=service.role, group=group, properties=callbacks)

    @property
    def transactional_id(self) -> str:
        """The id by which a restarted process ends the transaction that this one leaves open."""
        return str(self._properties["transactional.id"])

    def init(self) -> None:
        """Step 1, once a producer. Raises :class:`OutcomeUnknownError` where no broker answers yet (call again)."""
        if self._is_outdated and self._state is _State.NONE:
            self.restart()
        if self._initialised:
            return
        self._replace()
        began = time.monotonic()
        try:
            self._request(self._producer.init_transactions)
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() in _FENCED:
                raise FencedError(cause.str()) from None
            if cause.retriable():
                self._leave_blocked_id(cause, began)
                why = f"{self._clock_refused}; {cause.str()}" if self._clock_refused else cause.str()
                raise OutcomeUnknownError(why) from None
            raise RestartError(self._describe(cause), refused=refused(cause)) from None
        self._initialised = True
        self._blocked_since = None
        reach(FaultPoint.INITIALISED)

    def restart(self) -> None:
        """Replace the producer after :class:`RestartError`; :meth:`init` comes next."""
        self._state = _State.NONE
        self._initialised = self._is_outdated = False
        self._unknown_since = None
        self._is_lost = True
        with contextlib.suppress(OutcomeUnknownError):
            self._replace()

    def _replace(self) -> None:
        """Make the producer that takes a lost one's place; where this machine has no thread for it, a later init does.

        Raises :class:`OutcomeUnknownError` then.
        """
        if self._is_lost:
            try:
                self._producer = config.make_client(Producer, self._properties)
            except MachineError as lack:
                raise OutcomeUnknownError(str(lack)) from None
            self._is_lost = False

    def _leave_blocked_id(self, cause: KafkaError, began: float) -> None:
        """Take another transactional id where the coordinator cannot end the last transaction of this one.

        That transaction is decided, but its markers are not written: the leader of a partition is unreachable, or it
        refuses the marker's timestamp, and then the coordinator (Kafka 4.4) does not try again until it is reloaded.
        Until then it refuses the id. Another id loses and duplicates nothing: a request for the group's offsets waits
        until that transaction is decided there, and a zombie that still uses the old id is fenced by then. A producer
        without a group has only its id to keep two processes apart, so it waits.
        """
        if cause.code() != KafkaError.CONCURRENT_TRANSACTIONS or self._group is None:
            self._blocked_since = None
            return
        self._blocked_since = self._blocked_since or began
        limit = _REFUSED_BLOCKED_S if self._broker_refused else _BLOCKED_S
        if time.monotonic() - self._blocked_since < limit:
            return
        blocked = self.transactional_id
        # In no order, so that a restart need not go through all that were left before.
        self._properties["transactional.id"] = f"{self._first_id}~{secrets.token_hex(4)}"
        self._blocked_since = None
        self.restart()
        log.warning("transactional id is blocked, taking another", blocked=blocked, taken=self.transactional_id)

    def poll(self) -> None:
        """Serve the producer's callbacks while no transaction runs. Raises as :meth:`run` does for fatal errors."""
        if self._is_lost:
            return
        try:
            self._producer.poll(0)
        except KafkaException as error:
            self._handle(error.args[0])

    def renew(self) -> None:
        """Use a new producer once no transaction is open, since an output topic was created again.

        librdkafka 2.16 goes on with what it knew of the old topic: it sends records to the leaders of its partitions
        until the epochs of the new ones exceed theirs, and divides keys among the old number of partitions.
        """
        self._is_outdated = True

    def hurry(self) -> None:
        """Use short timeouts from now on: a stop has its own deadline."""
        self._call_timeout = self._delivery_timeout = _HURRIED_TIMEOUT_S

    def close(self) -> None:
        """Abort what is open, if the coordinator answers now; otherwise the next init or the timeout does."""
        with contextlib.suppress(KafkaException, TransactionError):
            self._request(self._producer.abort_transaction)

    def run(self, batch: Batch, group_metadata: Any = None) -> None:
        """Take one batch through steps 2 to 5; the module's text says what may be raised.

        ``group_metadata`` is that of the consumer whose offsets the batch commits, None where it commits none.
        """
        try:
            if self._state is _State.ABORTING:
                self._finish_abort()
            if self._state is _State.NONE:
                self._fill(batch, group_metadata)
                self._state = _State.COMMITTING
            self._request(self._producer.commit_transaction)
            reach(FaultPoint.COMMITTED)
            self._state = _State.NONE
            self._clock_refused = ""
            self._unknown_since = None
        except KafkaException as error:
            self._handle(error.args[0])

    def _fill(self, batch: Batch, group_metadata: Any) -> None:
        outputs = (output.topic for in_flight in batch.records for output in in_flight.outputs or ())
        self._touched = frozenset((*outputs, *(offset.topic for offset in batch.offsets)))
        self._clock_refused, self._broker_refused = "", False
        self._producer.begin_transaction()
        reach(FaultPoint.BEGUN)
        rejected: list[tuple[InFlightRecord, str]] = []
        try:
            for in_flight in batch.records:
                for output in in_flight.outputs or ():
                    self._produce(in_flight, output, rejected)
            if batch.offsets:
                self._request(self._producer.send_offsets_to_transaction, list(batch.offsets), group_metadata)
            reach(FaultPoint.OFFSETS_SENT)
            self._await_delivery(rejected)
            reach(FaultPoint.PRODUCED)
        except KafkaException as error:
            cause = error.args[0]
            if is_fatal_to_producer(cause):
                raise
            # Any other fault, a timeout included, loses nothing before the commit.
            with contextlib.suppress(KafkaException):  # which the abort meets again
                self._producer.poll(0)  # delivery reports say more than what the client makes of them
            why = self._clock_refused or self._describe(cause)
            too_long = cause.code() == KafkaError.OFFSET_METADATA_TOO_LARGE
            # If the timestamps are refused, the cause is a clock and no record.
            blamed = () if self._clock_refused else rejected
            self._abort(AbortedError(why, blamed, refused=refused(cause), metadata_refused=too_long))

    def _request(self, function: Callable[..., object], *arguments: Any) -> None:
        """Make one blocking request, whose last argument is its timeout. Without a thread for it, it is not made."""
        limit = self._call_timeout + min(_HUNG_AFTER_S, 1.5 * self._call_timeout)
        try:
            self._bounded(function, *arguments, self._call_timeout, limit=limit)
        except HungError as error:
            raise RestartError(f"{function.__name__} did not return: {error}") from None
        except MachineError as lack:
            # As the client itself reports a lack of threads; the request is made as soon as there is one.
            raise KafkaException(KafkaError(KafkaError._CRIT_SYS_RESOURCE, str(lack), retriable=True)) from None

    def _await_delivery(self, rejected: Sequence[tuple[InFlightRecord, str]]) -> None:
        """Wait until every record is acknowledged; at the commit a rejected one would only show as an abort."""
        deadline = time.monotonic() + self._delivery_timeout
        stops_early = self._restart_when_rejected
        while (left := len(self._producer)) and time.monotonic() < deadline and not (stops_early and rejected):
            # Not flush(): once the producer is fenced it raises SystemError (confluent-kafka 2.16).
            self._producer.poll(0.01)
        if stops_early and rejected:
            raise RestartError(f"{len(rejected)} records refused", rejected)
        if self._clock_refused:
            error = KafkaError(KafkaError.INVALID_TIMESTAMP, self._clock_refused, txn_requires_abort=True)
            raise KafkaException(error)
        if left or rejected:
            problem = f"{left} records not acknowledged in time" if left else f"{len(rejected)} records refused"
            raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, problem, txn_requires_abort=True))

    def _produce(self, in_flight: InFlightRecord, output: Output, rejected: list[tuple[InFlightRecord, str]]) -> None:
        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is None:
                return
            self._broker_refused |= error.code() in (KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP)
            # Of several records of a batch the client says only that they are invalid; the broker's words say why.
            if error.code() == KafkaError.INVALID_TIMESTAMP or (
                error.code() == KafkaError.INVALID_RECORD and "timestamp" in error.str().lower()
            ):
                whose = "of our records: is this host's clock right?"
                if output.timestamp is not None:
                    # The next attempt goes with the current time: late in an event-time join is better than nowhere.
                    given = in_flight.outputs or ()
                    in_flight.outputs = [replace(each, timestamp=None, retimed="refused") for each in given]
                    whose = "of input records, so their outputs get the current time."
                self._clock_refused = (
                    f"{output.topic} refuses the timestamps {whose} The topic's message.timestamp.before.max.ms and "
                    "message.timestamp.after.max.ms say how far off they may be"
                )
            elif error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD):
                rejected.append((in_flight, error.str()))

        try:
            enqueue(self._producer, output, delivered)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            rejected.append((in_flight, error.args[0].str()))

    def _abort(self, cause: AbortedError) -> NoReturn:
        """Abort the open transaction and raise ``cause``."""
        self._state = _State.ABORTING
        self._abort_cause = cause
        self._finish_abort()

    def _finish_abort(self) -> NoReturn:
        try:
            # Purges what is queued, waits for what is on its way, ends the transaction.
            self._request(self._producer.abort_transaction)
        except KafkaException as error:
            try:
                self._handle(error.args[0])
            except RestartError:
                cause = self._abort_cause
                if cause.refused is None:
                    raise
                # Why it was to be aborted says more than why that failed.
                raise RestartError(str(cause), cause.rejected, refused=cause.refused) from None
        self._state = _State.NONE
        self._unknown_since = None
        if self._broker_refused:
            # librdkafka (2.16) would go on with sequence numbers that the broker does not know. Besides, if the broker
            # refuses its own marker too, that is seen at the next init, and not in the middle of a transaction.
            self.restart()
        raise self._abort_cause

    def _handle(self, cause: KafkaError) -> NoReturn:
        if cause.code() in _FENCED:
            raise FencedError(cause.str())
        lost = RestartError(self._describe(cause), refused=refused(cause))
        if is_fatal_to_producer(cause):
            raise lost
        if cause.txn_requires_abort():
            self._abort(AbortedError(self._describe(cause), refused=refused(cause)))
        if self._state is not _State.NONE and cause.retriable():
            now_s = time.monotonic()
            self._unknown_since = self._unknown_since or now_s
            if now_s - self._unknown_since < _UNKNOWN_S:
                raise OutcomeUnknownError(cause.str())
        raise lost

    def _describe(self, cause: KafkaError) -> str:
        names = {
            Resource.TOPIC: sorted(self._touched),
            Resource.GROUP: [self._group] if self._group is not None else [],
            Resource.TRANSACTIONAL_ID: [self.transactional_id],
        }
        resource = refused(cause)
        return self._refusals.describe(cause, *(names[resource] if resource else ()))


class HungError(Exception):
    """The call did not return in time; it may still be running in its abandoned thread."""


class BoundedCalls:
    """Runs calls one at a time in a thread, which the first one starts; one that hangs is abandoned with its thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] | None = None

    def __call__(self, function: Callable[..., T], *arguments: Any, limit: float) -> T:
        """Return what ``function`` returns, or raise what it raises; :class:`HungError` after ``limit`` seconds.

        Raises :class:`~streamer.machine.MachineError` if this machine has no thread for the call, which is not made.
        """
        calls = self._calls or self._start()
        calls.put((function, arguments))
        try:
            result, error = self._outcomes.get(timeout=limit)
        except queue.Empty:
            self._end()
            self._calls = None
            raise HungError(f"no return after {limit:g} s") from None
        if error is not None:
            raise error
        value: T = result
        return value

    def _start(self) -> queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None]:
        # New queues too: a late result of the abandoned thread must not be taken for that of the next call.
        calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        start(threading.Thread(target=_serve, args=(calls, self._outcomes), name=self._name, daemon=True))
        # The thread ends with this object, or when it is abandoned, as soon as its call has returned.
        self._end = weakref.finalize(self, calls.put, None)
        self._calls = calls
        return calls


def _serve(calls: queue.SimpleQueue[Any], outcomes: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        function, arguments = call
        try:
            outcomes.put((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            outcomes.put((None, error))
        del call, function, arguments  # or this thread would keep a client alive until its next call
