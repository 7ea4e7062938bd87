"""Transactional producers that take turns, so that a transaction need not wait for the markers of the one before it.

The coordinator acknowledges a commit as soon as it has logged the decision; the markers that make the records visible
are written after that. Until then it refuses the same producer's next transaction (CONCURRENT_TRANSACTIONS), and the
client retries after a while: with one producer that determines the 99th percentile of the latency. Another producer
does not have to wait.

Why that keeps every guarantee:

- One transaction is open at a time: the next producer begins when the last commit or abort was acknowledged.
- The group's committed offsets are those of the last transaction, even where its marker is written before that of the
  previous one: of two commits the group coordinator keeps the one that was appended later, whichever is decided first
  (Kafka's OffsetMetadataManager.replayEndTransactionMarker). So does compaction.
- A fetch of the group's offsets, by a successor or by this process after a lost producer, waits while a transaction of
  any producer has pending offsets for them.
- A successor of the same instance takes over all transactional ids before it joins the group: an open transaction of
  any of them is ended, and each producer of a zombie is fenced at its next request. Where a release uses fewer
  producers than the previous one, the coordinator aborts what the others left open after transaction.timeout.ms, and
  fetches of the group's offsets wait for that.
- A producer whose transactional id stays blocked, because the coordinator cannot write the markers of its last
  transaction, takes another id (:meth:`Transactions.init`). No successor knows that one: what it leaves open is aborted
  after transaction.timeout.ms, and fetches of the group's offsets wait for that.
- A zombie of another instance is refused by the group's generation, as with one producer.

``make chaos`` kills rerankers with several producers at any moment and between any two steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.kafka.commit.outcomes import AbortedError, OutcomeUnknownError, RestartError
from streamer.kafka.commit.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.kafka.commit.outcomes import Batch
    from streamer.settings import ServiceSettings
    from streamer.topology import Service


class Rotation:
    """The transactional producers of one instance, used as one :class:`Transactions` and from one thread."""

    def __init__(self, settings: ServiceSettings, service: Service, callbacks: dict[str, Callable[..., None]]) -> None:
        self._producers = [
            Transactions.of_service(settings, service, callbacks, number=number) for number in range(service.producers)
        ]
        self._turn = 0

    @property
    def transactional_id(self) -> str:
        """The id of the producer whose turn it is."""
        return self._current.transactional_id

    @property
    def _current(self) -> Transactions:
        return self._producers[self._turn]

    def init(self) -> None:
        """Initialise every producer that is not initialised yet. Raises as :meth:`Transactions.init` does."""
        unknown: OutcomeUnknownError | None = None
        for turn, producer in enumerate(self._producers):
            try:
                producer.init()
            except OutcomeUnknownError as error:
                unknown = error  # the others are asked meanwhile: each may have to wait for something else
            except RestartError:
                self._turn = turn  # no other producer has an open transaction while one of them is not initialised
                raise
        if unknown is not None:
            raise unknown

    def restart(self) -> None:
        """Replace the producer that raised :class:`RestartError`; :meth:`init` comes next."""
        self._current.restart()

    def poll(self) -> None:
        """Serve the callbacks of all producers. Raises as :meth:`Transactions.poll` does."""
        for producer in self._producers:
            try:
                producer.poll()
            except RestartError:
                if producer is self._current:
                    raise
                # It has no open transaction; that of the current producer goes on.
                producer.restart()

    def renew(self) -> None:
        """Use new producers, each as :meth:`Transactions.renew` says."""
        for producer in self._producers:
            producer.renew()

    def hurry(self) -> None:
        """Use short timeouts from now on."""
        for producer in self._producers:
            producer.hurry()

    def run(self, batch: Batch, group_metadata: Any) -> None:
        """Commit one batch in a transaction of the current producer; at its end the next producer takes its turn."""
        self._current.init()  # a no-op unless it was replaced or is outdated
        try:
            self._current.run(batch, group_metadata)
        except AbortedError:
            self._pass_on()
            raise
        self._pass_on()

    def _pass_on(self) -> None:
        self._turn = (self._turn + 1) % len(self._producers)
