"""Which of several uploads and deletes of a clip counts: by version, by place in the log, for each model."""

from __future__ import annotations

import datetime as dt
import itertools
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streamer.store import Clip, PutOutcome, Store
from tests.support.store_engines import DIM, Engine, at, clip, following, place, versions

if TYPE_CHECKING:
    from collections.abc import Callable


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
