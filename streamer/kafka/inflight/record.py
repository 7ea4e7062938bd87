"""One record in flight, and the outputs that it causes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.tracing import exemplar

if TYPE_CHECKING:
    import datetime as dt
    from collections import deque
    from collections.abc import Callable, Sequence

    from streamer.kafka.records import Output, Record
    from streamer.tracing import Trace


class InFlightRecord:
    """One record that was received and is not committed yet.

    A pipeline calls :meth:`complete` exactly once, from any thread; the committer calls it again to replace an output.
    """

    __slots__ = ("_wake", "completed", "outputs", "record", "revoked", "since", "size", "trace")

    def __init__(self, record: Record, wake: Callable[[], None]) -> None:
        self.record = record
        self.outputs: Sequence[Output] | None = None
        self.since: dt.datetime | None = None
        self.size = record.size
        """Bytes held until the record is committed: its own and those of its outputs."""
        self.completed: deque[InFlightRecord] | None = None
        """The partition's queue of completed records, to which :meth:`complete` appends this one."""
        self.revoked = False
        """True once its partition was revoked or lost: its outputs are dropped, so it need not be processed."""
        self.trace: Trace | None = None
        """The record's trace, None where tracing is off."""
        self._wake = wake

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The trace that it belongs to, for a histogram's exemplar: its own span, or that of its ``traceparent``."""
        if self.trace is not None:
            return exemplar(self.trace.propagated(()))
        return exemplar(self.record.headers) if self.record.headers else None

    def complete(self, outputs: Sequence[Output] = (), *, since: dt.datetime | None = None) -> None:
        """Set the outputs and mark the record as completed; its latency is measured from ``since``."""
        self.since = since
        self.size = self.record.size + sum(output.size for output in outputs)
        self.outputs = outputs
        if self.completed is not None:
            self.completed.append(self)
        self._wake()
