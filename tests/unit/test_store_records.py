"""What a read gives joined is what it gives one by one, whatever lies between: and both are what was written."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from streamer.method import score_clips
from streamer.store import Clip, Position, record_format
from streamer.store.read_batch import BLOCK_BYTES, Records
from streamer.store.record_format import Version
from streamer.vectors import ClipList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.settings import Precision
    from streamer.store.record_format import CorruptRecordError

HERE = Position(1, 7)
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
PREFIX = record_format.model_prefix("model")
KINDS = (*PRECISIONS, "absent", "deleted", "damaged", "cut", "foreign")
WITHOUT_RECORD = {"absent", "deleted", "damaged", "cut", "foreign"}
CORRUPT = {"damaged", "cut", "foreign"}


def directions(random: np.random.Generator, count: int, dim: int) -> Any:
    vectors = random.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clip(clip_id: str, vectors: Any) -> Clip:
    return Clip(
        clip_id, AT, HERE, 8000, vectors, np.arange(len(vectors), dtype=np.uint32) * np.uint32(7) + np.uint32(3)
    )


def sealed(value: bytearray) -> bytes:
    value[8:16] = xxh3_64_intdigest(bytes(value[16:])).to_bytes(8, "little")
    return bytes(value)


def stored(kind: Any, at: Clip) -> bytes | None:
    """Return what is under a clip's key."""
    if kind in PRECISIONS:
        return record_format.encode(at, kind)
    if kind == "absent":
        return None
    if kind == "deleted":
        return record_format.encode_tombstone(at.clip_id, Version(0, False, HERE))
    value = bytearray(record_format.encode(at, "float16"))
    if kind == "damaged":
        value[-1] ^= 1
    elif kind == "cut":
        del value[-2:]
    else:
        # Whole by its checksum and its size, but with as many vectors more as their length is shorter.
        value[48:52], value[52:56] = value[52:56], value[48:52]
        return sealed(value)
    return bytes(value)


class Snapshot:
    """A store's records without a store."""

    def __init__(self, values: Sequence[tuple[str, bytes | None]], dim: int | None) -> None:
        self.clip_ids = [clip_id for clip_id, _ in values]
        self.keys = record_format.keys(PREFIX, self.clip_ids)
        self.values = {key: value for key, (_, value) in zip(self.keys, values, strict=True) if value is not None}
        self.dim = dim
        self.corrupt: list[int] = []

    def records(self) -> Records:
        return Records(self.get, self.keys, self.clip_ids, self.dim, self.note)

    def get(self, key: bytes) -> memoryview | None:
        value = self.values.get(key)
        return None if value is None else memoryview(value)

    def note(self, position: int, _: CorruptRecordError) -> None:
        self.corrupt.append(position)


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 9), st.booleans()), max_size=25),
    st.sampled_from([1, 3, 4, 8, 12, 40]),
    st.integers(0, 2**32 - 1),
)
def test_joined_and_one_by_one_clips_score_the_same(rows: list[tuple[str, int, bool]], dim: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = []
    for number, (kind, length, is_long) in enumerate(rows):
        # A dimension that its count of vectors does not equal, so that a foreign head is one.
        one = clip(f"{number}" + "x" * 505 * is_long, directions(random, length + (length == dim), dim))
        values.append((one.clip_id, stored(kind, one)))
    snapshot = Snapshot(values, dim)
    query = directions(random, 1, dim)[0]
    joined = score_clips(query, snapshot.records())
    assert sorted(snapshot.corrupt) == [number for number, (kind, *_) in enumerate(rows) if kind in CORRUPT]
    one_by_one = score_clips(query, ClipList(snapshot.records()))
    np.testing.assert_array_equal(joined.cosines, one_by_one.cosines)
    np.testing.assert_array_equal(joined.moments_ms, one_by_one.moments_ms)
    missing = [kind in WITHOUT_RECORD for kind, *_ in rows]
    np.testing.assert_array_equal(np.isnan(joined.cosines), missing)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_of_many_blocks_are_those_of_float64(precision: Precision) -> None:
    random = np.random.default_rng(5)
    dim = 512
    pool = directions(random, 80, dim)
    clips = [clip(f"c{number}", pool[: random.integers(1, 65)]) for number in range(220)]
    values = [(each.clip_id, record_format.encode(each, precision)) for each in clips]
    snapshot = Snapshot(values, dim)
    query = directions(random, 1, dim)[0]
    assert len(list(snapshot.records().blocks())) > 1
    scores = score_clips(query, snapshot.records())
    for embedding, cosine, moment in zip(snapshot.records(), *scores, strict=True):
        assert embedding is not None
        similarities = embedding.matrix.astype(np.float64) @ query
        if embedding.scales is not None:
            similarities *= embedding.scales
        assert abs(similarities.max() - cosine) < (1e-5 if precision == "int8" else 1e-7)
        assert moment == embedding.times_ms[similarities.argmax()]


def test_a_clip_larger_than_a_block_is_scored_where_it_lies() -> None:
    random = np.random.default_rng(5)
    dim = 1024
    clips = [clip(f"c{number}", directions(random, count, dim)) for number, count in enumerate((3, 600, 5))]
    values = [(each.clip_id, record_format.encode(each, "float32")) for each in clips]
    assert len(values[1][1]) > BLOCK_BYTES
    scores = score_clips(clips[1].vectors[577], Snapshot(values, dim).records())
    assert scores.cosines[1] == pytest.approx(1)
    assert scores.moments_ms[1] == 577 * 7 + 3
    assert not np.isnan(scores.cosines).any()


def test_a_store_that_takes_vectors_of_any_length_gives_them_in_blocks_of_one_length() -> None:
    random = np.random.default_rng(5)
    clips = [clip(f"c{number}", directions(random, 4, dim)) for number, dim in enumerate((8, 16, 8, 16))]
    values = [(each.clip_id, record_format.encode(each, "float16")) for each in clips]
    assert [b.matrix.shape[1] for b in Snapshot(values, None).records().blocks()] == [8, 16]
    for dim, others in ((8, [1, 3]), (16, [0, 2])):
        snapshot = Snapshot(values, dim)
        assert [b.matrix.shape[1] for b in snapshot.records().blocks()] == [dim]
        assert snapshot.corrupt == others


def test_reads_at_the_same_time_and_reads_left_in_the_middle_keep_out_of_each_others_memory() -> None:
    random = np.random.default_rng(5)
    dim = 64
    snapshots = []
    for store in range(4):
        clips = [clip(f"{store}.{number}", directions(random, 8, dim)) for number in range(60)]
        snapshots.append(Snapshot([(each.clip_id, record_format.encode(each, "float16")) for each in clips], dim))
    query = directions(random, 1, dim)[0]
    expected = [score_clips(query, ClipList(snapshot.records())).cosines for snapshot in snapshots]
    left = next(snapshots[0].records().blocks())
    before = left.matrix.copy()

    def read(number: int) -> bool:
        scores = score_clips(query, snapshots[number % 4].records())
        return bool((scores.cosines == expected[number % 4]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    np.testing.assert_array_equal(left.matrix, before)


def test_records_are_a_sequence() -> None:
    clips = [clip(f"c{number}", np.ones((number + 1, 4), np.float32)) for number in range(3)]
    records = Snapshot([(each.clip_id, record_format.encode(each, "float32")) for each in clips], 4).records()
    assert len(records) == 3
    assert [each and len(each.matrix) for each in records] == [1, 2, 3]
    assert records[-1] is records[2]
    assert records[1:] == [records[1], records[2]]
    assert list(Snapshot([], 4).records()) == []
    assert list(Snapshot([], 4).records().blocks()) == []
