"""Transactional producers that take turns, so that a transaction need not wait for the end of the one before it.

A commit is answered as soon as the coordinator has logged its decision; the markers that make it visible are written
after that. Until then the coordinator refuses the same producer's next transaction (CONCURRENT_TRANSACTIONS), and the
client tries again after a while: with one producer that is the 99th percentile of the latency. Another producer has
nothing to wait for.

Why that keeps every guarantee:

- One transaction is open at a time: the next producer begins when the last one's commit or abort was answered.
- The group's offsets end where the last transaction put them, though its marker may be written before that of the
  one before: the group coordinator keeps of two commits the one that was appended later, whichever is decided first
  (Kafka's OffsetMetadataManager.replayEndTransactionMarker). So does compaction.
- Whoever fetches the group's offsets, a successor or this process after a lost producer, is kept waiting while any
  transaction has pending offsets for them, whichever producer it is of.
- A successor of the same instance takes over all transactional ids before it joins the group: what any of them has
  open is decided, and each producer of a zombie is fenced at its next request. Where a release uses fewer
  producers than the one before, what the others left open is aborted by the coordinator after
  transaction.timeout.ms, and the group's offsets wait for that.
- A zombie of another instance is refused by the group's generation, as with one producer.

``make chaos`` kills rerankers with several producers at any moment and between any two steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.kafka.commit.transactions import AbortedError, RestartError, Transactions

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.kafka.commit.transactions import Batch
    from streamer.settings import ServiceSettings


class Rotation:
    """``producers`` of one instance, used as one :class:`Transactions` and from one thread."""

    def __init__(
        self, settings: ServiceSettings, group: str, callbacks: dict[str, Callable[..., None]], *, producers: int
    ) -> None:
        self._producers = [Transactions(settings, group, callbacks, number=number) for number in range(producers)]
        self._turn = 0

    @property
    def transactional_id(self) -> str:
        """The id of the producer whose turn it is."""
        return self._current.transactional_id

    @property
    def _current(self) -> Transactions:
        return self._producers[self._turn]

    def init(self) -> None:
        """Take over every transactional id that is not ours yet. Raises as :meth:`Transactions.init` does."""
        for turn, producer in enumerate(self._producers):
            try:
                producer.init()
            except RestartError:
                self._turn = turn  # nothing of another one is open while any of them is not initialised
                raise

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
                # It has nothing open; the transaction of the one whose turn it is goes on.
                producer.restart()

    def hurry(self) -> None:
        """Wait less for answers from now on."""
        for producer in self._producers:
            producer.hurry()

    def run(self, batch: Batch, group_metadata: Any) -> None:
        """Take one batch through a transaction of the producer whose turn it is, and pass the turn on at its end."""
        self._current.init()  # unless it was replaced by :meth:`poll`, that is done
        try:
            self._current.run(batch, group_metadata)
        except AbortedError:
            self._pass_on()
            raise
        self._pass_on()

    def _pass_on(self) -> None:
        self._turn = (self._turn + 1) % len(self._producers)
