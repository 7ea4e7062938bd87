"""A search through a topic from its end: which offsets are read when, and where it stops."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka.readers.newest import backwards
from streamer.kafka.readers.topic_reader import Span

bounds = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)


@given(st.lists(bounds, max_size=4), st.integers(1, 20))
def test_every_offset_is_in_exactly_one_round_and_newer_ones_are_in_earlier_rounds(
    given_bounds: list[list[int]], size: int
) -> None:
    spans = [Span(partition, begin, end) for partition, (begin, end) in enumerate(given_bounds)]
    rounds = list(backwards(spans, size))
    for span in spans:
        parts = [part for each in rounds for part in each if part.partition == span.partition]
        read = [offset for part in parts for offset in range(part.begin, part.end)]
        assert sorted(read) == list(range(span.begin, span.end))
        assert all(later.end == earlier.begin for earlier, later in itertools.pairwise(parts))
        assert all(0 < part.end - part.begin <= size for part in parts)
    longest = max((span.end - span.begin for span in spans), default=0)
    assert len(rounds) == -(-longest // size)
