"""The newest records of a topic first, outside any group, until the caller has found what it looks for.

A record that was written lately is found by reading a few thousand offsets, however many the topic holds. The search
ends at the topic's beginning, at a given time, or when its seconds are used up.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from streamer.kafka.readers.topic_reader import Span, TopicReader

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection
    from streamer.topology import Tool

OFFSETS_AT_ONCE = 4_000
"""So many offsets of each partition are read in one round."""


class NewestFirst:
    """A search through one topic, from the ends of its partitions backwards."""

    def __init__(
        self,
        settings: Connection,
        name: str,
        tool: Tool,
        *,
        seconds: float,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
    ) -> None:
        """``name`` is the topic's full name; ``since`` and ``until`` limit the records by their own times.

        ``seconds`` bounds the search. A partition that does not answer at all is an error of its own, after
        :data:`~streamer.kafka.readers.topic_reader.PATIENCE_S`.
        """
        self._settings = settings
        self._name = name
        self._tool = tool
        self._seconds = seconds
        self._since, self._until = since, until
        self.read = 0
        """The number of records that were read."""
        self.is_whole = True
        """False if the seconds were used up before everything was read."""

    def rounds(self, is_wanted: Callable[[Record], bool]) -> Iterator[list[Record]]:
        """Yield the wanted records of each round, possibly none; those of one partition in the order of offsets.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`.
        """
        deadline = time.monotonic() + self._seconds
        with contextlib.closing(TopicReader(self._settings, self._name, self._tool)) as reader:
            spans = reader.spans_between(self._since, self._until)
            for parts in backwards(spans, OFFSETS_AT_ONCE):
                found = []
                for part in parts:
                    for record in reader.records(part):
                        self.read += 1
                        if is_wanted(record):
                            found.append(record)
                        if time.monotonic() > deadline:
                            self.is_whole = False
                            yield found
                            return
                yield found

    def described(self) -> str:
        """Say what was searched, for a message about what was not found."""
        since = f" since {self._since.isoformat()}" if self._since else ""
        until = f" before {self._until.isoformat()}" if self._until else ""
        limit = "" if self.is_whole else f", where the search ended after {self._seconds:g} s"
        return f"the newest {self.read:,} records of {self._name}{since}{until}{limit}"


def backwards(spans: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """Divide spans into rounds: in each, the last ``size`` offsets of every span that are not in a round before."""
    left = [span for span in spans if span.begin < span.end]
    while left:
        parts = [Span(span.partition, max(span.begin, span.end - size), span.end) for span in left]
        yield parts
        left = [
            Span(span.partition, span.begin, part.begin)
            for span, part in zip(left, parts, strict=True)
            if span.begin < part.begin
        ]
