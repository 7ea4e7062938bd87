"""One record in flight, and what it causes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.kafka.records import carried
from streamer.tracing import TRACEPARENT

if TYPE_CHECKING:
    import datetime as dt
    from collections import deque
    from collections.abc import Callable, Sequence

    from streamer.kafka.records import Headers, Output, Record
    from streamer.tracing import Trace


class InFlightRecord:
    """One record in flight.

    A pipeline calls :meth:`complete` exactly once, from any thread; the committer again where it replaces an output.
    """

    __slots__ = ("_wake", "completed", "outputs", "record", "revoked", "since", "size", "trace")

    def __init__(self, record: Record, wake: Callable[[], None]) -> None:
        self.record = record
        self.outputs: Sequence[Output] | None = None
        self.since: dt.datetime | None = None
        self.size = record.size
        """Bytes that are held until the record is committed: its own, and those of its outputs."""
        self.completed: deque[InFlightRecord] | None = None
        """Where the work reports to when it is done: to its partition."""
        self.revoked = False
        """True once its partition was taken away: whatever it causes is dropped, so it need not be worked on."""
        self.trace: Trace | None = None
        """Of the record, where records are traced."""
        self._wake = wake

    @property
    def carried(self) -> Headers:
        """The headers that go on to whatever the record causes; where it is traced, its own span is their parent."""
        headers = carried(self.record.headers)
        if self.trace is None:
            return headers
        return (TRACEPARENT, self.trace.traceparent), *(each for each in headers if each[0] != TRACEPARENT)

    def complete(self, outputs: Sequence[Output] = (), *, since: dt.datetime | None = None) -> None:
        """Hand over what the record causes; ``since`` is the time from which its latency counts."""
        self.since = since
        self.size = self.record.size + sum(output.size for output in outputs)
        self.outputs = outputs
        if self.completed is not None:
            self.completed.append(self)
        self._wake()
