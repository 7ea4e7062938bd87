"""Reading on in a topic, outside any group: what was committed since the last poll."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.kafka.readers.topic_reader import TopicReader
    from streamer.kafka.records import Record


class Follower:
    """Follows one topic as read_committed consumers do; used from one thread."""

    def __init__(self, reader: TopicReader, *, from_beginning: bool) -> None:
        """``from_beginning``: whether the first poll brings all that is there, or nothing."""
        self._reader = reader
        self._next: dict[int, int] | None = {} if from_beginning else None

    def poll(self) -> Iterator[Record]:
        """Go through the new records, one partition after the other, up to the topic's end at this moment.

        A partition that ends before the last record of it was created again, and is read from its beginning. Raises
        :class:`~streamer.kafka.readers.topic_reader.ReadError`; the next poll goes on where this one ended.
        """
        spans = self._reader.spans()
        if self._next is None:
            self._next = {span.partition: span.end for span in spans}
        for span in spans:
            begin = max(span.begin, self._next.get(span.partition, 0))
            if begin > span.end:
                begin = span.begin
            self._next[span.partition] = begin
            for record in self._reader.records(span._replace(begin=begin)):
                self._next[span.partition] = record.offset + 1
                yield record
            self._next[span.partition] = span.end
