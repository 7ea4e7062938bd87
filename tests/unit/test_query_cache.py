"""The LRU cache of query vectors, in front of an encoder that keeps a record of its calls."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.encoders import EncoderError
from streamer.reranker import MAX_TEXT_BATCH, QueryVectors
from tests.support.encoders import FakeEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

DIM = 4


def vector_of(query: str) -> npt.NDArray[np.float32]:
    seed = int.from_bytes(query.encode(), "big")
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


class CountingEncoder(FakeEncoder):
    """An encoder of texts that depends on nothing but the text."""

    dim = DIM

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(list(queries))
        if "broken" in queries:
            raise EncoderError("broken")
        return np.stack([vector_of(query) for query in queries])

    def warm_up(self) -> None:
        self.batches.clear()


def test_a_query_is_encoded_once() -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, 10)
    first = vectors.get(["a", "b"])
    second = vectors.get(["b", "c", "a"])
    assert encoder.batches == [["a", "b"], ["c"]]
    np.testing.assert_array_equal(second[[2, 0]], first)
    assert (vectors.hits, vectors.misses) == (2, 3)


def test_a_query_that_comes_twice_in_a_call_is_encoded_once() -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, 10)
    got = vectors.get(["a", "b", "a"])
    assert encoder.batches == [["a", "b"]]
    np.testing.assert_array_equal(got[0], got[2])
    assert (vectors.hits, vectors.misses) == (1, 2)


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, 2)
    vectors.get(["a", "b"])
    vectors.get(["a"])
    vectors.get(["c"])
    vectors.get(["a", "b"])
    assert encoder.batches == [["a", "b"], ["c"], ["b"]]


def test_size_0_keeps_nothing() -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, 0)
    vectors.get(["a", "a"])
    vectors.get(["a"])
    assert encoder.batches == [["a"], ["a"]]
    assert len(vectors) == 0


def test_many_misses_are_encoded_in_bounded_batches() -> None:
    encoder = CountingEncoder()
    queries = [f"query {number}" for number in range(2 * MAX_TEXT_BATCH + 1)]
    got = QueryVectors(encoder, 10).get(queries)
    assert [len(batch) for batch in encoder.batches] == [MAX_TEXT_BATCH, MAX_TEXT_BATCH, 1]
    np.testing.assert_array_equal(got, np.stack([vector_of(query) for query in queries]))


def test_no_queries_give_no_vectors() -> None:
    encoder = CountingEncoder()
    got = QueryVectors(encoder, 10).get([])
    assert got.shape == (0, DIM)
    assert got.dtype == np.float32
    assert encoder.batches == []


def test_what_the_caller_does_to_a_vector_does_not_reach_the_cache() -> None:
    vectors = QueryVectors(CountingEncoder(), 10)
    vectors.get(["a"])[:] = 0
    np.testing.assert_array_equal(vectors.get(["a"])[0], vector_of("a"))


def test_a_kept_vector_does_not_hold_its_batch_in_memory() -> None:
    vectors = QueryVectors(CountingEncoder(), 10)
    vectors.get(["a", "b"])
    assert all(vector.base is None for vector in vectors._vectors.values())


def test_a_failure_passes_through_and_leaves_the_cache_usable() -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, 10)
    vectors.get(["a"])
    with pytest.raises(EncoderError, match="broken"):
        vectors.get(["a", "broken"])
    np.testing.assert_array_equal(vectors.get(["a", "b"])[1], vector_of("b"))
    assert encoder.batches == [["a"], ["broken"], ["b"]]
    assert (vectors.hits, vectors.misses) == (1, 2)


@given(
    size=st.integers(0, 5),
    calls=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=12),
)
def test_any_sequence_of_calls_behaves_as_an_lru_cache(size: int, calls: list[list[str]]) -> None:
    encoder = CountingEncoder()
    vectors = QueryVectors(encoder, size)
    model: OrderedDict[str, None] = OrderedDict()
    expected: list[list[str]] = []
    for call in calls:
        distinct = list(dict.fromkeys(call))
        missing = [query for query in distinct if query not in model]
        for query in [query for query in distinct if query in model] + missing:
            model[query] = None
            model.move_to_end(query)
        while len(model) > size:
            model.popitem(last=False)
        expected += [missing] if missing else []
        got = vectors.get(call)
        assert got.shape == (len(call), DIM)
        for query, vector in zip(call, got, strict=True):
            np.testing.assert_array_equal(vector, vector_of(query))
    assert encoder.batches == expected
    assert vectors.hits + vectors.misses == sum(map(len, calls))
    assert vectors.misses == sum(map(len, expected))
    assert len(vectors) == len(model)
