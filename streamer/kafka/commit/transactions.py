"""One transaction: outputs produced and input offsets committed, together or not at all.

The steps, and what a crash right after each leaves behind:

1. *init* (once a start, and after a fatal error). The coordinator raises the epoch of our transactional.id,
   which fences any earlier holder of it, and aborts or completes what that one left open. A crash here
   leaves nothing open.
2. *begin*. Local to the client. A crash leaves nothing.
3. *send offsets*, with the consumer's group metadata, while the outputs are on their way: the group coordinator
   refuses them from a member whose generation has passed, so a zombie that lost its partitions cannot commit. A
   crash leaves an open transaction: the next init of this id aborts it, else the coordinator does after
   transaction.timeout.ms; whoever fetches the group's offsets waits until then. The records are processed again.
4. *produce*. Outputs and dead letters are in the log, each acknowledged, but read_committed consumers do not see
   them. A crash is as after 3.
5. *commit*. When the coordinator has written its decision, all of it will become visible, offsets and outputs
   alike, whether we live or not. A crash before the decision is as after 3; a crash after it loses nothing:
   the next owner starts behind the committed offsets.

Right after each step, and after the embedder's store write before them, stands a fault point at which a test
kills the process (:mod:`streamer.faults`).

Outcomes for the caller: :meth:`Transactions.run` returned: committed. :class:`AbortedError`: nothing happened,
the same outputs may be tried again in a new transaction, since they are still held in memory and no offset
moved. :class:`UndecidedError`: the end of the transaction, commit or abort, was not answered in time; call
again with the same batch, which only goes on asking. :class:`RestartError`: the producer is unusable and
whether its last transaction was committed is unknown; make a new one and ask the group for its committed
offsets, which know. :class:`FencedError`: another process holds our transactional.id; this one must stop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streamer.faults import FaultPoint, reach
from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.produce import enqueue
from streamer.kafka.client.refusals import Refusals, refused, role_of
from streamer.kafka.commit.bounded import BoundedCalls, HungError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.kafka.inflight.work import InFlightRecord
    from streamer.kafka.records import Output
    from streamer.settings import ServiceSettings

CALL_TIMEOUT_S = 2.0
"""Longest single request; what times out is taken up again, and the loop polls its consumer in between."""
_DELIVERY_TIMEOUT_S = 5.0
_HURRIED_TIMEOUT_S = 0.8
_HUNG_AFTER_S = 3.0
"""How long a request may outlast its own timeout. send_offsets_to_transaction was seen not to end at all when its
broker went away (librdkafka 2.16): the producer is given up then, and a new one fences it."""

_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED)


class TransactionError(Exception):
    """Base of what :meth:`Transactions.run` raises.

    ``refused`` is of what kind the resource is for which a privilege is missing, where that is the cause.
    """

    def __init__(self, message: str, refused: Resource | None = None) -> None:
        super().__init__(message)
        self.refused = refused


class AbortedError(TransactionError):
    """The transaction was aborted; the batch may be tried again.

    ``unfit`` are works of which an output can never be produced, with the reason.
    """

    def __init__(
        self, message: str, unfit: Sequence[tuple[InFlightRecord, str]] = (), *, refused: Resource | None = None
    ) -> None:
        super().__init__(message, refused)
        self.unfit = unfit


class UndecidedError(TransactionError):
    """The coordinator has not answered in time; call again with the same batch."""


class RestartError(TransactionError):
    """The producer is unusable; the group's committed offsets tell what came of its last transaction."""


class FencedError(TransactionError):
    """Another producer took over our transactional.id."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Completed works, each partition's in offset order without a gap, and the offsets that follow from them."""

    works: Sequence[InFlightRecord]
    offsets: Sequence[TopicPartition]


class _State(Enum):
    """Where the current transaction is; a call that times out is taken up again from here."""

    NONE = auto()
    COMMITTING = auto()
    ABORTING = auto()


class Transactions:
    """A transactional producer, one transaction at a time, used from one thread.

    ``number`` tells the producers of one instance apart (:mod:`streamer.kafka.commit.rotation`).
    """

    def __init__(
        self, settings: ServiceSettings, group: str, callbacks: dict[str, Callable[..., None]], *, number: int = 0
    ) -> None:
        self._properties = config.producer(settings, config.transactional_id(settings, group, number), callbacks)
        self._group = settings.topic(group)
        self._refusals = Refusals(settings, role_of(group))
        self._touched: frozenset[str] = frozenset()
        self._state = _State.NONE
        self._initialised = False
        self._bounded = BoundedCalls("transactions")
        self._call_timeout = CALL_TIMEOUT_S
        self._delivery_timeout = _DELIVERY_TIMEOUT_S
        self._abort_cause = AbortedError("")
        self._producer: Producer = config.make_client(Producer, self._properties)

    @property
    def transactional_id(self) -> str:
        """The id under which a restart takes over what this process leaves open."""
        return str(self._properties["transactional.id"])

    def init(self) -> None:
        """Step 1, once a producer. Raises :class:`UndecidedError` where no broker answers yet (call again)."""
        if self._initialised:
            return
        try:
            self._request(self._producer.init_transactions)
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() in _FENCED:
                raise FencedError(cause.str()) from None
            if cause.retriable():
                raise UndecidedError(cause.str()) from None
            raise RestartError(self._told(cause), refused(cause)) from None
        self._initialised = True
        reach(FaultPoint.INITIALISED)

    def restart(self) -> None:
        """Replace the producer after :class:`RestartError`; :meth:`init` comes next."""
        self._state = _State.NONE
        self._initialised = False
        self._producer = config.make_client(Producer, self._properties)

    def poll(self) -> None:
        """Serve the producer's callbacks while no transaction runs. Raises as :meth:`run` does for fatal errors."""
        try:
            self._producer.poll(0)
        except KafkaException as error:
            self._handle(error.args[0])

    def hurry(self) -> None:
        """Wait less for answers from now on: a stop has its own deadline."""
        self._call_timeout = self._delivery_timeout = _HURRIED_TIMEOUT_S

    def run(self, batch: Batch, group_metadata: Any) -> None:
        """Take one batch through steps 2 to 5; the module's text says what may be raised."""
        try:
            if self._state is _State.ABORTING:
                self._finish_abort()
            if self._state is _State.NONE:
                self._fill(batch, group_metadata)
                self._state = _State.COMMITTING
            self._request(self._producer.commit_transaction)
            reach(FaultPoint.COMMITTED)
            self._state = _State.NONE
        except KafkaException as error:
            self._handle(error.args[0])

    def _fill(self, batch: Batch, group_metadata: Any) -> None:
        outputs = (output.topic for work in batch.works for output in work.outputs or ())
        self._touched = frozenset((*outputs, *(offset.topic for offset in batch.offsets)))
        self._producer.begin_transaction()
        reach(FaultPoint.BEGUN)
        unfit: list[tuple[InFlightRecord, str]] = []
        try:
            for work in batch.works:
                for output in work.outputs or ():
                    self._produce(work, output, unfit)
            self._request(self._producer.send_offsets_to_transaction, list(batch.offsets), group_metadata)
            reach(FaultPoint.OFFSETS_SENT)
            self._await_delivery(unfit)
            reach(FaultPoint.PRODUCED)
        except KafkaException as error:
            cause = error.args[0]
            if _costs_the_producer(cause):
                raise
            # Whatever else went wrong, and be it an answer that did not come: before the commit nothing is lost.
            self._abort(AbortedError(self._told(cause), unfit, refused=refused(cause)))

    def _request(self, function: Callable[..., object], *arguments: Any) -> None:
        """Make one blocking request, whose last argument is its timeout."""
        limit = self._call_timeout + min(_HUNG_AFTER_S, 1.5 * self._call_timeout)
        try:
            self._bounded(function, *arguments, self._call_timeout, limit=limit)
        except HungError as error:
            raise RestartError(f"{function.__name__} hangs: {error}") from None

    def _await_delivery(self, unfit: Sequence[object]) -> None:
        """Wait until the brokers have every record; at commit a refused one would show only as an abort."""
        deadline = time.monotonic() + self._delivery_timeout
        while (left := len(self._producer)) and time.monotonic() < deadline:
            # Not flush(): once the producer is fenced it raises SystemError (confluent-kafka 2.16).
            self._producer.poll(0.01)
        if left or unfit:
            problem = f"{left} records not acknowledged in time" if left else f"{len(unfit)} records refused"
            raise KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT, problem, txn_requires_abort=True))

    def _produce(self, work: InFlightRecord, output: Output, unfit: list[tuple[InFlightRecord, str]]) -> None:
        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None and error.code() in (
                KafkaError.MSG_SIZE_TOO_LARGE,
                KafkaError.INVALID_RECORD,
            ):
                unfit.append((work, error.str()))

        try:
            enqueue(self._producer, output, delivered)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            unfit.append((work, error.args[0].str()))

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
            self._handle(error.args[0])
        self._state = _State.NONE
        raise self._abort_cause

    def _handle(self, cause: KafkaError) -> NoReturn:
        if cause.code() in _FENCED:
            raise FencedError(cause.str())
        lost = RestartError(self._told(cause), refused(cause))
        if _costs_the_producer(cause):
            raise lost
        if cause.txn_requires_abort():
            self._abort(AbortedError(self._told(cause), refused=refused(cause)))
        if self._state is not _State.NONE and cause.retriable():
            raise UndecidedError(cause.str())
        raise lost

    def _told(self, cause: KafkaError) -> str:
        names = {
            Resource.TOPIC: sorted(self._touched),
            Resource.GROUP: [self._group],
            Resource.TRANSACTIONAL_ID: [self.transactional_id],
        }
        resource = refused(cause)
        return self._refusals.told(cause, *(names[resource] if resource else ()))


def _costs_the_producer(cause: KafkaError) -> bool:
    # A coordinator forgets ids that are idle for days. librdkafka (2.16) would have the transaction aborted and, where
    # it was the offsets that were refused, use the forgotten producer id again.
    return cause.fatal() or cause.code() == KafkaError.INVALID_PRODUCER_ID_MAPPING
