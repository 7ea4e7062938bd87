"""What every engine of the store fulfils: LMDB, real servers of the Redis protocol, and a real cluster of them."""

from __future__ import annotations

import datetime as dt
import itertools
import multiprocessing
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamer.method import score_clips
from streamer.store import Clip, Position, PutOutcome, Store, StoreError, StoreOptions, open_store, record_format
from streamer.store.lmdb.store import LmdbStore
from streamer.store.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event
    from pathlib import Path

    from streamer.settings import Precision
    from streamer.store.lmdb.environment import Transaction

DIM = 8
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOSTILE_IDS = ["a", "ab", "a\nb", "a\0", "\0", "../../etc", "{a}", "clip:*", "☃", "é" * 256, "a" * 501, "a" * 512]
WAIT_S = 120
PATIENT: Any = {"options": StoreOptions(timeout_s=30)}
"""A busy machine is none that is away."""
spawn = multiprocessing.get_context("spawn")


class LmdbEngine:
    """Opens LMDB stores on one folder, and damages their records."""

    is_transactional = True
    """Whether a put is seen whole or not at all, and a read is one snapshot."""

    def __init__(self, folder: Path) -> None:
        self.url = f"lmdb:{folder / 'store'}"
        self.opened: list[Store] = []

    def open(self, **changes: Any) -> Store:
        store = open_store(
            self.url, **{"model_id": "model-a", "dim": DIM, "precision": "float32", **PATIENT, **changes}
        )
        self.opened.append(store)
        return store

    def change(self, clip_id: str, how: Callable[[bytes], bytes], model_id: str = "model-a") -> None:
        key = record_format.key(record_format.model_prefix(model_id), clip_id)
        (store,) = self.opened[:1]
        assert isinstance(store, LmdbStore)

        def rewrite(transaction: Transaction) -> None:
            value = transaction.get(key)
            assert value is not None
            transaction.put(key, how(bytes(value)))

        store._opened().write(rewrite)

    def close(self) -> None:
        for store in self.opened:
            store.close()


class RedisEngine(LmdbEngine):
    """Opens stores of one name at a URL that tests share."""

    is_transactional = False

    def __init__(self, url: str) -> None:
        self.url = f"{url}?name=test-{secrets.token_hex(6)}"
        self.opened = []

    def change(self, clip_id: str, how: Callable[[bytes], bytes], model_id: str = "model-a") -> None:
        key = record_format.key(record_format.model_prefix(model_id), clip_id)
        (store,) = self.opened[:1]
        assert isinstance(store, RedisStore)
        space = store._opened()
        assert space is not None
        full = space.buckets.full(key)
        space.link.one("SET", full, how(space.link.one("GET", full)))


Engine = LmdbEngine | RedisEngine


@pytest.fixture(params=["lmdb", "valkey", "valkey_cluster", "redis"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    servers = None if request.param == "lmdb" else request.getfixturevalue(request.param)
    engine = LmdbEngine(tmp_path) if servers is None else RedisEngine(servers.url)
    yield engine
    engine.close()


@pytest.fixture
def store(engine: Engine) -> Store:
    return engine.open()


def at(version: int) -> dt.datetime:
    return FIRST + dt.timedelta(microseconds=version)


def place(offset: int, log: str = "log") -> Position:
    return Position.of(log, offset)


_offsets = itertools.count(1_000)


def following() -> Position:
    """Return a position after all those given before: an event that is news."""
    return place(next(_offsets))


def clip(clip_id: str = "c1", version: int = 1, position: Position | None = None, *, dim: int = DIM) -> Clip:
    """Make a clip in which everything follows from the version; it is news unless a position says otherwise."""
    n = 1 + version % 5
    vectors = np.full((n, dim), (1 + version % 1000) / 1000, np.float32)
    times = np.arange(n, dtype=np.uint32) * version
    return Clip(clip_id, at(version), position or following(), 1000 + version, vectors, times)


def corrupt(store: Store, clip_ids: list[str]) -> int:
    """Return how many of these clips' records are corrupt."""
    with store.read(clip_ids) as records:
        assert len(list(records)) == len(clip_ids)
        return records.corrupt


def versions(store: Store, clip_ids: list[str]) -> list[int | None]:
    """Read clips that :func:`clip` made, check that each is whole, and return their versions."""
    found: list[int | None] = []
    with store.read(clip_ids) as embeddings:
        for clip_id, embedding in zip(clip_ids, embeddings, strict=True):
            if embedding is None:
                found.append(None)
                continue
            version = (embedding.uploaded_at - FIRST) // dt.timedelta(microseconds=1)
            expected = clip(clip_id, version, dim=embedding.matrix.shape[1])
            np.testing.assert_array_equal(embedding.matrix, expected.vectors)
            np.testing.assert_array_equal(embedding.times_ms, expected.times_ms)
            assert embedding.duration_ms == expected.duration_ms
            found.append(version)
    return found


def test_what_is_put_is_read_in_the_order_requested(store: Store) -> None:
    assert store.put([clip("c1", 1), clip("c2", 2), clip("c3", 3)]) == [PutOutcome.WRITTEN] * 3
    assert versions(store, ["c3", "nothing", "c1", "c3"]) == [3, None, 1, 3]


def test_no_clips_are_put_and_read(store: Store) -> None:
    assert store.put([]) == []
    assert versions(store, []) == []


def test_an_older_upload_does_not_overwrite_a_newer_one(store: Store) -> None:
    store.put([clip(version=7)])
    assert store.put([clip(version=6)]) == [PutOutcome.SUPERSEDED]
    assert versions(store, ["c1"]) == [7]


def test_versions_count_to_the_microsecond(store: Store) -> None:
    assert store.put([clip(version=1), clip(version=2)]) == [PutOutcome.WRITTEN] * 2
    assert versions(store, ["c1"]) == [2]


def test_versions_within_one_put_are_distinguished_whatever_their_order(store: Store) -> None:
    outcomes = store.put([clip(version=2), clip(version=3), clip(version=1)])
    assert outcomes == [PutOutcome.WRITTEN, PutOutcome.WRITTEN, PutOutcome.SUPERSEDED]
    assert versions(store, ["c1"]) == [3]


def test_an_upload_that_is_delivered_again_is_written_again(store: Store) -> None:
    store.put([clip(version=4)])
    again = Clip("c1", at(4), following(), 5, np.ones((2, DIM), np.float32), np.zeros(2, np.uint32))
    assert store.put([again]) == [PutOutcome.WRITTEN]
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.duration_ms == 5


def test_times_of_any_zone_order_versions_by_the_instant(store: Store) -> None:
    tokyo = dt.timezone(dt.timedelta(hours=9))
    store.put([clip(version=5)])
    vectors, times = np.ones((1, DIM), np.float32), np.zeros(1, np.uint32)
    older = Clip("c1", at(4).astimezone(tokyo), following(), 0, vectors, times)
    assert store.put([older]) == [PutOutcome.SUPERSEDED]
    assert versions(store, ["c1"]) == [5]


def test_a_deleted_clip_is_absent_and_its_upload_stays_dead_however_late_the_clock_of_the_delete(
    store: Store,
) -> None:
    store.put([clip(version=5)])
    assert store.delete("c1", at(1_000_000), following())
    assert versions(store, ["c1"]) == [None]
    assert store.put([clip(version=5), clip(version=4)]) == [PutOutcome.SUPERSEDED] * 2
    assert versions(store, ["c1"]) == [None]


def test_an_upload_newer_than_the_deleted_one_lives_though_the_delete_bears_a_later_time(
    store: Store,
) -> None:
    store.put([clip(version=5)])
    store.delete("c1", at(1_000_000), following())
    assert store.put([clip(version=6)]) == [PutOutcome.WRITTEN]
    assert versions(store, ["c1"]) == [6]


def test_a_delete_wins_over_an_upload_that_bears_a_later_time(store: Store) -> None:
    store.put([clip(version=1_000_000)])
    assert store.delete("c1", at(5), following())
    assert store.put([clip(version=1_000_000)]) == [PutOutcome.SUPERSEDED]


def test_a_second_delete_keeps_the_version_of_the_first(store: Store) -> None:
    store.put([clip(version=5)])
    assert store.delete("c1", at(10), following())
    assert not store.delete("c1", at(20), following())
    assert store.put([clip(version=6)]) == [PutOutcome.WRITTEN]


def test_a_delete_of_an_unknown_clip_keeps_out_uploads_up_to_its_time(store: Store) -> None:
    assert not store.delete("c1", at(5), following())
    assert store.put([clip(version=5)]) == [PutOutcome.SUPERSEDED]
    assert store.put([clip(version=6)]) == [PutOutcome.WRITTEN]


def test_a_replay_of_upload_delete_and_new_upload_changes_nothing(store: Store) -> None:
    def apply_the_log() -> tuple[PutOutcome, bool, PutOutcome]:
        (first,) = store.put([clip(version=1, position=place(1))])
        removed = store.delete("c1", at(50), place(2))
        (second,) = store.put([clip(version=2, position=place(3))])
        return first, removed, second

    assert apply_the_log() == (PutOutcome.WRITTEN, True, PutOutcome.WRITTEN)
    assert apply_the_log() == (PutOutcome.SUPERSEDED, False, PutOutcome.WRITTEN)
    assert versions(store, ["c1"]) == [2]
    assert store.put([clip(version=3, position=place(4))]) == [PutOutcome.WRITTEN]


def test_a_late_delete_removes_nothing_that_is_later_in_the_log(store: Store) -> None:
    store.put([clip(version=5, position=place(9))])
    assert not store.delete("c1", at(99), place(8))
    assert versions(store, ["c1"]) == [5]
    assert store.delete("c1", at(99), place(10))


def test_a_late_upload_does_not_come_back_after_a_delete_of_an_unknown_clip(store: Store) -> None:
    store.delete("c1", at(5), place(9))
    assert store.put([clip(version=6, position=place(8))]) == [PutOutcome.SUPERSEDED]
    assert store.put([clip(version=6, position=place(10))]) == [PutOutcome.WRITTEN]


def test_of_equal_versions_the_one_later_in_the_log_stays(store: Store) -> None:
    early = Clip("c1", at(4), place(1), 5, np.ones((2, DIM), np.float32), np.zeros(2, np.uint32))
    assert store.put([early]) == [PutOutcome.WRITTEN]
    assert store.put([clip(version=4, position=place(2))]) == [PutOutcome.WRITTEN]
    assert store.put([early]) == [PutOutcome.SUPERSEDED]
    assert versions(store, ["c1"]) == [4]


def test_a_clip_that_is_deleted_twice_is_not_brought_back_from_between_the_deletes(store: Store) -> None:
    store.delete("c1", at(1), place(1))
    store.delete("c1", at(1), place(5))
    store.delete("c1", at(1), place(1))
    assert store.put([clip(version=9, position=place(3))]) == [PutOutcome.SUPERSEDED]
    assert store.put([clip(version=9, position=place(6))]) == [PutOutcome.WRITTEN]


def test_a_superseded_upload_leaves_the_position_of_what_stays(store: Store) -> None:
    store.put([clip(version=9, position=place(1))])
    assert store.put([clip(version=3, position=place(5))]) == [PutOutcome.SUPERSEDED]
    assert store.delete("c1", at(99), place(4))


@pytest.mark.parametrize("offset", [0, 5, 1_000_000])
def test_between_different_logs_the_order_of_arrival_counts(store: Store, offset: int) -> None:
    anew = place(offset, "the topic made anew")
    store.put([clip(version=4, position=place(5))])
    assert store.put([clip(version=4, position=anew)]) == [PutOutcome.WRITTEN]
    assert store.delete("c1", at(9), place(5))
    assert store.put([clip(version=5, position=anew)]) == [PutOutcome.WRITTEN]
    assert store.put([clip(version=4, position=place(7))]) == [PutOutcome.SUPERSEDED]
    assert versions(store, ["c1"]) == [5]


def test_a_delete_reaches_each_model_by_the_position_of_its_own_record(engine: Engine, store: Store) -> None:
    other = engine.open(model_id="model-b")
    store.put([clip(version=1, position=place(1))])
    other.put([clip(version=2, position=place(3))])
    assert store.delete("c1", at(9), place(2))
    assert versions(store, ["c1"]) == [None]
    assert versions(other, ["c1"]) == [2]


def test_vectors_of_another_model_are_never_seen(engine: Engine, store: Store) -> None:
    other = engine.open(model_id="model-b", dim=4)
    store.put([clip(version=1)])
    assert versions(other, ["c1"]) == [None]
    other.put([clip(version=2, dim=4)])
    assert versions(store, ["c1"]) == [1]
    assert versions(other, ["c1"]) == [2]
    assert (list(store.clip_ids()), list(other.clip_ids())) == (["c1"], ["c1"])


def test_a_delete_reaches_the_records_of_all_models(engine: Engine, store: Store) -> None:
    other = engine.open(model_id="model-b", dim=4)
    untouched = engine.open(model_id="model-c")
    store.put([clip(version=1)])
    other.put([clip(version=2, dim=4)])
    assert store.delete("c1", at(9), following())
    assert versions(other, ["c1"]) == [None]
    assert other.put([clip(version=2, dim=4)]) == [PutOutcome.SUPERSEDED]
    assert untouched.put([clip(version=1)]) == [PutOutcome.WRITTEN]


def test_a_delete_by_a_model_that_has_no_record_removes_the_other_models_record(engine: Engine, store: Store) -> None:
    other = engine.open(model_id="model-b")
    store.put([clip(version=1)])
    assert not other.delete("c1", at(9), following())
    assert versions(store, ["c1"]) == [None]


def test_hostile_ids_are_distinguished_and_read_back(store: Store) -> None:
    store.put([clip(clip_id, version) for version, clip_id in enumerate(HOSTILE_IDS)])
    assert versions(store, HOSTILE_IDS) == list(range(len(HOSTILE_IDS)))
    assert sorted(store.clip_ids()) == sorted(HOSTILE_IDS)
    for clip_id in HOSTILE_IDS[::2]:
        assert store.delete(clip_id, at(99), following())
    assert sorted(store.clip_ids()) == sorted(HOSTILE_IDS[1::2])


@pytest.mark.parametrize("clip_id", ["", "a" * 513, "é" * 257])
def test_what_can_be_no_id_is_refused(store: Store, clip_id: str) -> None:
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


class AgainstADict(RuleBasedStateMachine):
    """Uploads, deletes and reads of two models against plain dictionaries, which know nothing of what comes again."""

    def __init__(self, stores: dict[str, Store], ids: list[str]) -> None:
        super().__init__()
        self.stores = stores
        self.ids = ids
        self.expected: dict[tuple[str, str], tuple[int, bool]] = {}
        self.log: list[Callable[[], object]] = []

    @rule(data=st.data(), model=st.sampled_from("ab"), times=st.lists(st.integers(0, 30), max_size=4))
    def put(self, data: st.DataObject, model: str, times: list[int]) -> None:
        rows = [(data.draw(st.sampled_from(self.ids)), version) for version in times]
        outcomes = []
        for clip_id, version in rows:
            stored, live = self.expected.get((model, clip_id), (-1, False))
            if version > stored or (live and version == stored):
                self.expected[model, clip_id] = version, True
                outcomes.append(PutOutcome.WRITTEN)
            else:
                outcomes.append(PutOutcome.SUPERSEDED)
        clips = [clip(clip_id, version) for clip_id, version in rows]
        assert self.stores[model].put(clips) == outcomes
        self.log += [partial(self.stores[model].put, [each]) for each in clips]

    @rule(data=st.data(), model=st.sampled_from("ab"), deleted_at=st.integers(0, 30))
    def delete(self, data: st.DataObject, model: str, deleted_at: int) -> None:
        clip_id = data.draw(st.sampled_from(self.ids))
        _, removed = self.expected.setdefault((model, clip_id), (deleted_at, False))
        for name in "ab":
            if (name, clip_id) in self.expected:
                self.expected[name, clip_id] = self.expected[name, clip_id][0], False
        position = following()
        assert self.stores[model].delete(clip_id, at(deleted_at), position) == removed
        self.log.append(partial(self.stores[model].delete, clip_id, at(deleted_at), position))

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        for event in self.log[data.draw(st.integers(0, len(self.log) - 1)) :]:
            event()

    @invariant()
    def reads_agree(self) -> None:
        for model, store in self.stores.items():
            there = [self.expected.get((model, clip_id), (0, False)) for clip_id in self.ids]
            assert versions(store, self.ids) == [version if live else None for version, live in there]

    @invariant()
    def listings_agree(self) -> None:
        for model, store in self.stores.items():
            live = [clip_id for clip_id in self.ids if self.expected.get((model, clip_id), (0, False))[1]]
            assert sorted(set(store.clip_ids()) & set(self.ids)) == sorted(live)


def test_any_sequence_of_uploads_and_deletes_agrees_with_a_dictionary(engine: Engine) -> None:
    stores = {model: engine.open(model_id=model) for model in "ab"}
    runs = itertools.count()

    class Run(AgainstADict):
        def __init__(self) -> None:
            # Ids of its own, so that every run begins with nothing in the one store.
            name = f"run{next(runs)}"
            super().__init__(stores, [name, name + "x" * 500, name + "\0"])

    run_state_machine_as_test(Run, settings=settings(max_examples=25, stateful_step_count=15, deadline=None))


# What runs in processes of its own.

BATCH = [f"c{number}" for number in range(8)]


def put_batches(url: str, started: Event, dim: int) -> None:
    store = open_store(url, model_id="model-a", dim=dim, precision="float32", **PATIENT)
    versions_before = versions(store, BATCH[:1])
    for version in itertools.count((versions_before[0] or 0) + 1):
        store.put([clip(clip_id, version, dim=dim) for clip_id in BATCH])
        started.set()


def check_batch(found: list[int | None], engine_is_transactional: bool, before: list[int | None]) -> None:
    """A clip's version never falls; where a put is a transaction, all clips of one have the same."""
    assert all((old or 0) <= (new or 0) for old, new in zip(before, found, strict=True))
    assert len(set(found)) == 1 or not engine_is_transactional


def read_batches(url: str, enough: int, engine_is_transactional: bool) -> None:
    """Read until ``enough`` versions have gone by."""
    store = open_store(url, model_id="model-a", dim=DIM, precision="float32", read_only=True, **PATIENT)
    seen: set[int | None] = set()
    found: list[int | None] = [None] * len(BATCH)
    while len(seen) < enough:
        before, found = found, versions(store, BATCH)
        check_batch(found, engine_is_transactional, before)
        seen |= {*found}
    assert corrupt(store, BATCH) == 0
    store.close()


def test_several_processes_read_while_one_writes_and_see_whole_clips_or_transactions(engine: Engine) -> None:
    arguments = engine.url, 20, engine.is_transactional
    readers = [spawn.Process(target=read_batches, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    store = engine.open()
    deadline = time.monotonic() + WAIT_S
    version = 0
    while any(reader.is_alive() for reader in readers) and time.monotonic() < deadline:
        version += 1
        store.put([clip(clip_id, version) for clip_id in BATCH])
    for reader in readers:
        reader.kill()
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_several_threads_read_while_one_writes_and_see_whole_clips_or_transactions(
    engine: Engine, store: Store
) -> None:
    store.put([clip(clip_id, 1) for clip_id in BATCH])
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(lambda: [versions(store, BATCH) for _ in range(100)]) for _ in range(4)]
        for version in itertools.count(2):
            store.put([clip(clip_id, version) for clip_id in BATCH])
            if all(read.done() for read in reads):
                break
    for read in reads:
        for before, found in itertools.pairwise(read.result()):
            check_batch(found, engine.is_transactional, before)
    assert len({version for read in reads for found in read.result() for version in found}) > 1


def test_several_writers_of_the_same_clips_leave_the_newest(engine: Engine) -> None:
    stores = [engine.open() for _ in range(4)]

    def write(number: int) -> None:
        for version in range(number, 200, 4):
            stores[number].put([clip(clip_id, version) for clip_id in BATCH[:3]])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert versions(stores[0], BATCH[:3]) == [199] * 3


def test_a_writer_killed_in_the_middle_leaves_whole_clips_or_transactions_and_a_store_that_can_be_written(
    engine: Engine,
) -> None:
    dim = 16_384
    last = 0
    for pause_s in (0.0, 0.013, 0.037):
        started = spawn.Event()
        writer = spawn.Process(target=put_batches, args=(engine.url, started, dim))
        writer.start()
        assert started.wait(WAIT_S)
        time.sleep(pause_s)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        store = engine.open(dim=dim)
        found = versions(store, BATCH)
        check_batch(found, engine.is_transactional, [last + 1] * len(BATCH))
        last = max(version or 0 for version in found) + 1
        assert store.put([clip(clip_id, last, dim=dim) for clip_id in BATCH]) == [PutOutcome.WRITTEN] * len(BATCH)
        assert set(versions(store, BATCH)) == {last}
        store.close()
