"""What is kept and read back: ids, precisions, large and corrupt records, listings; and what a store refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.method import score_clips
from streamer.store import Clip, PutOutcome, Store, StoreError
from tests.support.store_engines import DIM, Engine, at, clip, corrupt, following, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.settings import Precision

HOSTILE_IDS = ["a", "ab", "a\nb", "a\0", "\0", "../../etc", "{a}", "clip:*", "☃", "é" * 256, "a" * 501, "a" * 512]


def test_what_is_put_is_read_in_the_order_requested(store: Store) -> None:
    assert store.put([clip("c1", 1), clip("c2", 2), clip("c3", 3)]) == [PutOutcome.WRITTEN] * 3
    assert versions(store, ["c3", "nothing", "c1", "c3"]) == [3, None, 1, 3]


def test_no_clips_are_put_and_read(store: Store) -> None:
    assert store.put([]) == []
    assert versions(store, []) == []


def test_hostile_ids_are_distinguished_and_read_back(store: Store) -> None:
    store.put([clip(clip_id, version) for version, clip_id in enumerate(HOSTILE_IDS)])
    assert versions(store, HOSTILE_IDS) == list(range(len(HOSTILE_IDS)))
    assert sorted(store.clip_ids()) == sorted(HOSTILE_IDS)
    for clip_id in HOSTILE_IDS[::2]:
        assert store.delete(clip_id, at(99), following())
    assert sorted(store.clip_ids()) == sorted(HOSTILE_IDS[1::2])


@pytest.mark.parametrize("clip_id", ["", "a" * 513, "é" * 257])
def test_an_invalid_clip_id_is_refused(store: Store, clip_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 512 bytes"):
        store.put([clip(clip_id)])
    with pytest.raises(ValueError, match="1 to 512 bytes"), store.read([clip_id]):
        pass
    with pytest.raises(ValueError, match="1 to 512 bytes"):
        store.delete(clip_id, at(1), following())


def test_one_bad_clip_keeps_the_whole_put_out(store: Store) -> None:
    with pytest.raises(ValueError, match="length 8"):
        store.put([clip("c1"), clip("c2", dim=4)])
    assert versions(store, ["c1", "c2"]) == [None, None]


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_vectors_are_kept_in_the_requested_precision(engine: Engine, precision: Precision) -> None:
    vectors = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = engine.open(precision=precision)
    store.put([Clip("c1", at(1), following(), 10, vectors, np.arange(5, dtype=np.uint32))])
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.matrix.dtype == np.dtype(precision)
        restored = embedding.matrix.astype(np.float32)
        if embedding.scales is not None:
            restored *= embedding.scales[:, None]
    np.testing.assert_allclose(restored, vectors, atol={"float32": 0, "float16": 5e-4, "int8": 4e-3}[precision])


def test_records_of_several_precisions_are_read_by_one_store(engine: Engine, store: Store) -> None:
    engine.open(precision="int8").put([clip("c1")])
    engine.open(precision="float16").put([clip("c2")])
    with store.read(["c1", "c2"]) as embeddings:
        assert [e and e.matrix.dtype.name for e in embeddings] == ["int8", "float16"]


def test_a_large_record_comes_back(engine: Engine) -> None:
    store = engine.open(dim=768)
    vectors = np.random.default_rng(2).standard_normal((2000, 768)).astype(np.float32)
    times = np.arange(2000, dtype=np.uint32) * 40
    store.put([Clip("long", at(1), following(), 80_000, vectors, times)])
    with store.read(["long"]) as (embedding,):
        assert embedding is not None
        np.testing.assert_array_equal(embedding.matrix, vectors)
        np.testing.assert_array_equal(embedding.times_ms, times)


def flipped(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


@pytest.mark.parametrize("damage", [flipped, lambda value: value[:-4], lambda _: b"x", lambda _: b""])
@pytest.mark.parametrize("clip_id", ["c1", "a" * 512])
def test_a_corrupt_record_is_absent_counted_and_healed_by_the_next_upload(
    engine: Engine, store: Store, clip_id: str, damage: Callable[[bytes], bytes]
) -> None:
    store.put([clip(clip_id, 5), clip("whole", 5)])
    engine.change(clip_id, damage)
    assert versions(store, [clip_id, "whole"]) == [None, 5]
    assert versions(store, [clip_id]) == [None]
    assert corrupt(store, [clip_id, "whole"]) == 1
    assert store.put([clip(clip_id, 3)]) == [PutOutcome.WRITTEN]
    assert versions(store, [clip_id]) == [3]
    assert corrupt(store, [clip_id, "whole"]) == 0


def with_vectors(clip_id: str, vectors: Any) -> Clip:
    return replace(clip(clip_id), vectors=vectors, times_ms=np.arange(len(vectors), dtype=np.uint32) * 500)


def test_a_store_scores_by_the_pooling_that_it_is_given(store: Store) -> None:
    rng = np.random.default_rng(7)
    ids = [f"c{number}" for number in range(5)]
    vectors = [rng.standard_normal((frames, DIM)).astype(np.float32) for frames in (1, 2, 9, 40)]
    vectors = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]
    store.put([with_vectors(name, each) for name, each in zip(ids, vectors, strict=False)])
    query = vectors[2][4]
    with store.read(ids) as records:
        expected = {pooling: score_clips(query, records, pooling) for pooling in ("max", "softmax:0.1")}
    for pooling, frame in expected.items():
        found = store.score(ids, query, None, pooling).frame
        np.testing.assert_array_equal(found.cosines, frame.cosines)
        np.testing.assert_array_equal(found.moments_ms, frame.moments_ms)
    assert (expected["softmax:0.1"].cosines[1:4] < expected["max"].cosines[1:4]).all()
    assert expected["softmax:0.1"].cosines[0] == expected["max"].cosines[0]


def test_a_corrupt_record_is_scored_as_absent_and_counted(engine: Engine, store: Store) -> None:
    store.put([clip(clip_id) for clip_id in ("c1", "c2", "c3")])
    engine.change("c2", flipped)
    with store.read(["c1", "c2", "c3", "c4"]) as records:
        scores = score_clips(np.ones(DIM, np.float32), records)
        assert records.corrupt == 1
    assert np.isnan(scores.cosines).tolist() == [False, True, False, True]


def test_a_corrupt_record_is_logged_once(
    engine: Engine, store: Store, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store.put([clip("c1"), clip("c2")])
    engine.change("c1", flipped)
    for _ in range(3):
        assert versions(store, ["c1", "c2"]) == [None, 1]
    # Where the line goes depends on whether a test before this one has configured logging.
    assert "".join([*capsys.readouterr(), caplog.text]).count("corrupt record") == 1


def test_a_corrupt_record_can_be_deleted(engine: Engine, store: Store) -> None:
    store.put([clip(version=5)])
    engine.change("c1", flipped)
    assert not store.delete("c1", at(9), following())
    assert store.put([clip(version=9)]) == [PutOutcome.SUPERSEDED]


def test_vectors_of_another_length_under_the_same_model_are_absent(engine: Engine, store: Store) -> None:
    store.put([clip()])
    assert versions(engine.open(dim=4), ["c1"]) == [None]


def test_statistics_count_clips_by_model_and_tombstones(engine: Engine, store: Store) -> None:
    other = engine.open(model_id="model-b")
    engine.open(model_id="model-without-clips")
    store.put([clip(f"c{number}") for number in range(7)])
    other.put([clip("c1")])
    store.delete("c1", at(9), following())
    store.delete("unknown", at(9), following())
    stats = store.stats()
    assert stats.models == {"model-a": 6, "model-b": 0, "model-without-clips": 0}
    assert stats.tombstones == 3
    assert stats.bytes > 6 * clip("c1").vectors.nbytes


def test_ids_are_listed_while_clips_are_deleted_and_the_listing_may_be_left(store: Store) -> None:
    ids = {f"c{number}" for number in range(2500)}
    store.put([clip(clip_id) for clip_id in ids])
    assert next(store.clip_ids()) in ids
    listed = set()
    for number, clip_id in enumerate(store.clip_ids()):
        listed.add(clip_id)
        if number % 500 == 0:
            store.delete(clip_id, at(9), following())
    assert listed == ids
    assert len(list(store.clip_ids())) == 2495


def test_what_was_put_is_readable_after_closing_and_reopening(engine: Engine) -> None:
    store = engine.open()
    store.put([clip(version=3)])
    store.close()
    store.close()
    assert versions(engine.open(), ["c1"]) == [3]


def test_a_closed_store_refuses_work(engine: Engine) -> None:
    store = engine.open()
    store.close()
    for work in (store.ping, store.stats, lambda: store.put([clip()]), lambda: store.delete("c1", at(1), following())):
        with pytest.raises(StoreError, match="closed"):
            work()


def test_a_read_only_store_refuses_writes_and_sees_those_of_others(engine: Engine) -> None:
    reader = engine.open(read_only=True)
    assert versions(reader, ["c1"]) == [None]
    assert list(reader.clip_ids()) == []
    with pytest.raises(StoreError, match="opened read-only"):
        reader.put([clip()])
    with pytest.raises(StoreError, match="opened read-only"):
        reader.delete("c1", at(1), following())
    engine.open().put([clip(version=2)])
    assert versions(reader, ["c1"]) == [2]
    reader.ping()


def test_a_read_keeps_its_snapshot_while_the_store_is_written(store: Store) -> None:
    store.put([clip(version=1)])
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        before = embedding.matrix.copy()
        for version in range(2, 40):
            store.put([clip(version=version), clip(f"other{version}", version)])
        np.testing.assert_array_equal(embedding.matrix, before)
    assert versions(store, ["c1"]) == [39]


def test_after_a_read_its_records_refuse_to_be_looked_up(store: Store) -> None:
    store.put([clip()])
    with store.read(["c1"]) as unseen, store.read(["c1"]) as seen:
        assert seen[0] is not None
    for records in (unseen, seen):
        with pytest.raises(StoreError, match="has ended"):
            _ = records[0]
        with pytest.raises(StoreError, match="has ended"):
            score_clips(np.ones(DIM, np.float32), records)


def test_an_error_inside_a_read_reaches_the_caller_and_ends_the_read(store: Store) -> None:
    store.put([clip()])
    with pytest.raises(ZeroDivisionError), store.read(["c1"]):
        _ = 1 / 0
    assert versions(store, ["c1"]) == [1]
