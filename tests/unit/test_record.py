from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xxhash import xxh3_64_intdigest

from streamer.store import Clip, Position, record_format
from streamer.store.record_format import Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.settings import Precision

LONG_ID = "é" * 256
IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128),
    st.text(st.sampled_from("aé\n\0/"), min_size=250, max_size=256),
    st.sampled_from(["x", "a/b", "a\nb", "a\0b", "☃" * 170, LONG_ID, "a" * 501, "a" * 502, "a" * 512]),
)
MOMENTS = st.datetimes(timezones=st.just(dt.UTC))
PRECISIONS = st.sampled_from(["float32", "float16", "int8"])
PREFIX = record_format.model_prefix("model")
POSITIONS = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))
VERSIONS = st.integers(-(2**62), 2**62)
HERE = Position.of("clips.uploaded-0", 7)


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 33)))
    components = st.floats(-1, 1, width=32).map(lambda value: value if abs(value) > 1e-6 else 0.0)
    vectors = draw(hnp.arrays(np.float32, shape, elements=components))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Clip(
        draw(IDS),
        draw(MOMENTS),
        draw(POSITIONS),
        draw(st.integers(0, 2**40)),
        np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0),
        np.sort(draw(hnp.arrays(np.uint32, shape[0]))),
    )


def a_clip(clip_id: str = "c1") -> Clip:
    return Clip(
        clip_id,
        dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
        HERE,
        8200,
        np.array([[0.6, 0.8, 0], [0, -1, 0], [0.36, 0.48, 0.8]], np.float32),
        np.array([0, 500, 1000], np.uint32),
    )


def sealed_with(value: bytes, at: int, new: bytes) -> memoryview:
    """Change bytes of a record and make its checksum fit again, as another release or program might write it."""
    changed = bytearray(value)
    changed[at : at + len(new)] = new
    changed[8:16] = xxh3_64_intdigest(bytes(changed[16:])).to_bytes(8, "little")
    return memoryview(bytes(changed))


@given(clips(), PRECISIONS)
def test_a_record_gives_back_its_clip_within_the_error_of_its_precision(clip: Clip, precision: Precision) -> None:
    value = memoryview(record_format.encode(clip, precision))
    embedding = record_format.decode(value, clip.clip_id, clip.vectors.shape[1])
    assert embedding is not None
    assert embedding.uploaded_at == clip.uploaded_at
    assert embedding.duration_ms == clip.duration_ms
    np.testing.assert_array_equal(embedding.times_ms, clip.times_ms)
    assert embedding.matrix.dtype == np.dtype(precision)
    restored = embedding.matrix.astype(np.float64)
    if precision == "int8":
        assert embedding.scales is not None
        restored *= embedding.scales[:, None]
        peaks = np.abs(clip.vectors).max(axis=1, keepdims=True)
        bound = peaks / 127 * 0.5001
    else:
        assert embedding.scales is None
        # Half of the last of float16's 11 significant bits; below 2**-14 their distance stays 2**-24.
        bound = np.maximum(np.abs(clip.vectors) * 2**-11, 2**-25) if precision == "float16" else 0.0
    assert np.all(np.abs(restored - clip.vectors) <= bound)


@given(clips(), PRECISIONS)
def test_decoding_copies_nothing_and_the_matrix_lies_on_a_multiple_of_8_bytes(clip: Clip, precision: Precision) -> None:
    value = memoryview(record_format.encode(clip, precision))
    embedding = record_format.decode(value, clip.clip_id, clip.vectors.shape[1])
    assert embedding is not None
    whole = np.frombuffer(value, np.uint8)
    for array, alignment in ((embedding.matrix, 8), (embedding.times_ms, 4), (embedding.scales, 4)):
        if array is not None:
            assert np.shares_memory(array, whole)
            assert not array.flags.writeable
            assert (array.ctypes.data - whole.ctypes.data) % alignment == 0


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("clip_id", ["c1", LONG_ID])
def test_every_flipped_byte_is_detected(precision: Precision, clip_id: str) -> None:
    value = record_format.encode(a_clip(clip_id), precision)
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 0x41
        with pytest.raises(record_format.CorruptRecordError):
            record_format.decode(memoryview(damaged), clip_id, 3)


def test_every_flipped_byte_of_a_tombstone_is_detected() -> None:
    value = record_format.encode_tombstone("c1", Version(17, False, HERE))
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1
        with pytest.raises(record_format.CorruptRecordError):
            record_format.decode(memoryview(damaged), "c1", 3)


def test_every_truncation_is_detected() -> None:
    value = record_format.encode(a_clip(), "float16")
    for length in range(len(value)):
        with pytest.raises(record_format.CorruptRecordError):
            record_format.decode(memoryview(value[:length]), "c1", 3)


@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_record(value: bytes) -> None:
    with pytest.raises(record_format.CorruptRecordError):
        record_format.decode(memoryview(value), "c1", 3)
    with pytest.raises(record_format.CorruptRecordError):
        record_format.decode(memoryview(b"clipvec\x02" + value), "c1", 3)
    assert record_format.version(memoryview(value)) is None


def test_a_record_of_vectors_of_another_length_is_refused() -> None:
    value = memoryview(record_format.encode(a_clip(), "float16"))
    with pytest.raises(record_format.CorruptRecordError, match="length 3, not 4"):
        record_format.decode(value, "c1", 4)


@pytest.mark.parametrize(
    ("at", "new", "complaint"),
    [
        (0, b"clipvec\x01", "begins with"),
        (0, b"clipvec\x03", "begins with"),
        (58, b"\x09", "precision 9"),
        (52, (2**32 - 1).to_bytes(4, "little"), "4294967295 vectors"),
        (48, (2**32 - 1).to_bytes(4, "little"), "length 4294967295"),
        (56, (2**16 - 1).to_bytes(2, "little"), "3 vectors"),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused_although_its_checksum_fits(
    at: int, new: bytes, complaint: str
) -> None:
    value = sealed_with(record_format.encode(a_clip(), "float16"), at, new)
    with pytest.raises(record_format.CorruptRecordError, match=complaint):
        record_format.decode(value, "c1", 3)


def test_a_record_found_under_the_hash_of_another_long_id_is_refused() -> None:
    value = memoryview(record_format.encode(a_clip(LONG_ID), "float16"))
    with pytest.raises(record_format.CorruptRecordError, match="another clip"):
        record_format.decode(value, "e" * 512, 3)


@given(IDS, VERSIONS, POSITIONS)
def test_a_tombstone_keeps_its_version_and_position_and_holds_no_vectors(
    clip_id: str, uploaded_us: int, position: Position
) -> None:
    tombstone = Version(uploaded_us, False, position)
    value = memoryview(record_format.encode_tombstone(clip_id, tombstone))
    assert record_format.decode(value, clip_id, 3) is None
    assert record_format.version(value) == tombstone
    assert not record_format.is_live(value)


@given(clips(), PRECISIONS)
def test_a_clip_is_distinguished_from_a_tombstone_without_reading_it_all(clip: Clip, precision: Precision) -> None:
    value = memoryview(record_format.encode(clip, precision))
    assert record_format.is_live(value)
    assert record_format.version(value) == (record_format.microseconds(clip.uploaded_at), True, clip.position)


@given(VERSIONS, POSITIONS)
def test_where_nothing_readable_is_stored_any_event_applies(uploaded_us: int, position: Position) -> None:
    assert record_format.version(None) is None
    assert record_format.admits(None, uploaded_us, position)
    assert record_format.tombstone(None, uploaded_us, position) == (uploaded_us, False, position)


@pytest.mark.parametrize(
    ("uploaded_us", "live", "earlier", "not_earlier"),
    [
        (4, True, False, False),
        (5, True, False, True),
        (6, True, True, True),
        (4, False, False, False),
        (5, False, False, False),
        (6, False, False, True),
    ],
)
def test_an_upload_replaces_a_record_only_if_it_is_later(
    uploaded_us: int, live: bool, earlier: bool, not_earlier: bool
) -> None:
    there = Version(5, live, HERE)
    assert record_format.admits(there, uploaded_us, Position(HERE.log, 6)) == earlier
    for position in (HERE, Position(HERE.log, 8), Position.of("clips.uploaded-1", 6)):
        assert record_format.admits(there, uploaded_us, position) == not_earlier


@pytest.mark.parametrize("live", [True, False])
def test_a_delete_is_ignored_where_it_is_earlier_and_else_keeps_the_version_and_gives_the_position(live: bool) -> None:
    there = Version(5, live, HERE)
    assert record_format.tombstone(there, 9, Position(HERE.log, 6)) is None
    for position in (HERE, Position(HERE.log, 8), Position.of("clips.uploaded-1", 6)):
        assert record_format.tombstone(there, 9, position) == (5, False, position)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((9, 3), (4, 4), True),
        ((4, 4), (9, 3), False),
        ((0, 0), (9, 0), True),
        ((9, None), (4, 4), False),
        ((4, 4), (9, None), True),
        ((9, 0), (9, None), False),
        ((4, None), (9, None), True),
    ],
)
def test_positions_are_ordered_by_epoch_and_offset_and_by_offset_alone_where_an_epoch_is_not_known(
    first: tuple[int, int | None], second: tuple[int, int | None], *, expected: bool
) -> None:
    assert Position.of("log-0", *first).precedes(Position.of("log-0", *second)) is expected
    assert not Position.of("log-0", *first).precedes(Position.of("log-1", *second))


def test_the_largest_epoch_and_offset_of_a_position_fit_into_a_record() -> None:
    largest = Position.of("log-0", 2**40 - 1, 2**23 - 2)
    stored = memoryview(record_format.encode_tombstone("c1", Version(5, False, largest)))
    assert record_format.version(stored) == (5, False, largest)


EVENTS = st.tuples(st.booleans(), st.integers(0, 3))
"""Of one clip: an upload and its version, or a delete and its time."""


def after(there: Version | None, event: tuple[bool, int], position: Position) -> Version | None:
    """Apply an event to what is stored, as an engine does."""
    is_upload, moment_us = event
    if is_upload:
        return Version(moment_us, True, position) if record_format.admits(there, moment_us, position) else there
    return record_format.tombstone(there, moment_us, position) or there


def in_order(events: Sequence[tuple[bool, int]]) -> tuple[int | None, bool]:
    """Tell what a log leaves behind, by versions alone: the highest so far, and whether it is live."""
    highest: int | None = None
    live = False
    for is_upload, moment in events:
        if not is_upload:
            highest, live = moment if highest is None else highest, False
        elif highest is None or moment > highest or (live and moment == highest):
            highest, live = moment, True
    return highest, live


@given(
    st.lists(st.tuples(EVENTS, st.lists(st.integers(0, 2**16), max_size=4)), min_size=1, max_size=12),
    st.integers(0, 12),
)
def test_any_redelivery_ends_in_the_state_of_the_log_applied_once_in_order(
    log: list[tuple[tuple[bool, int], list[int]]], upgraded_at: int
) -> None:
    # After each event some of those up to it come again: replays after crashes, late writes of paused processes.
    events = [event for event, _ in log]
    once: Version | None = None
    often: Version | None = None
    for offset, (event, repeats) in enumerate(log):
        # Releases before the upgrade did not store the leader's epoch, which here goes on every third offset.
        position = [
            Position.of("log-0", each, each // 3 if offset >= upgraded_at else None) for each in range(len(log))
        ]
        once = after(once, event, position[offset])
        often = after(often, event, position[offset])
        for repeat in (number % (offset + 1) for number in repeats):
            often = after(often, events[repeat], position[repeat])
        assert once is not None
        assert often is not None
        assert often[:2] == once[:2]
        # The same event, which may have been stored again with its epoch since.
        assert not often.position.precedes(once.position)
        assert not once.position.precedes(often.position)
    assert once is not None
    assert (once.uploaded_us, once.live) == in_order(events)


def test_positions_of_one_log_have_an_order_and_those_of_different_logs_have_none() -> None:
    first, second = Position.of("a-0", 1), Position.of("a-0", 2)
    other = Position.of("a-1", 2)
    assert first.precedes(second)
    assert not second.precedes(first)
    assert not first.precedes(first)
    assert not first.precedes(other)
    assert not other.precedes(second)


@given(st.lists(IDS, min_size=2, unique=True))
def test_different_ids_have_different_keys_of_even_length_that_fit_lmdb(clip_ids: list[str]) -> None:
    keys = [record_format.key(PREFIX, clip_id) for clip_id in clip_ids]
    assert len(set(keys)) == len(keys)
    assert all(len(key) % 2 == 0 and len(key) <= 511 and key.startswith(PREFIX) for key in keys)


@given(st.lists(IDS))
def test_many_keys_at_once_are_those_made_one_by_one(clip_ids: list[str]) -> None:
    assert record_format.keys(PREFIX, clip_ids) == [record_format.key(PREFIX, clip_id) for clip_id in clip_ids]


@given(IDS)
def test_the_clip_id_is_read_from_key_and_record(clip_id: str) -> None:
    key = record_format.key(PREFIX, clip_id)
    assert record_format.clip_id(key, memoryview(record_format.encode(a_clip(clip_id), "float16"))) == clip_id
    assert (
        record_format.clip_id(key, memoryview(record_format.encode_tombstone(clip_id, Version(0, False, HERE))))
        == clip_id
    )


@pytest.mark.parametrize("clip_id", ["", "a" * 513, "é" * 257, "\ud800"])
def test_an_invalid_clip_id_is_refused(clip_id: str) -> None:
    with pytest.raises(ValueError, match=r"1 to 512 bytes|surrogates"):
        record_format.key(PREFIX, clip_id)
    with pytest.raises(ValueError, match=r"1 to 512 bytes|surrogates"):
        record_format.keys(PREFIX, ["c1", clip_id])


@pytest.mark.parametrize(
    ("vectors", "times"),
    [
        (np.empty((0, 3), np.float32), np.empty(0, np.uint32)),
        (np.ones(3, np.float32), np.zeros(3, np.uint32)),
        (np.ones((2, 3), np.float32), np.zeros(3, np.uint32)),
        (np.full((1, 3), np.nan, np.float32), np.zeros(1, np.uint32)),
    ],
)
def test_what_is_no_clip_is_not_written(vectors: np.ndarray, times: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"do not fit together|not finite"):
        record_format.encode(Clip("c1", dt.datetime.now(dt.UTC), HERE, 0, vectors, times), "float16")
