"""A partition's files are cut between two batches, as whole ones."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.chaos import segments

if TYPE_CHECKING:
    from pathlib import Path


def batch(base: int, size: int, attributes: int = 0, producer: int = -1) -> bytes:
    content = bytearray(struct.pack(">qi", base, size) + bytes(size))
    struct.pack_into(">h", content, 21, attributes)
    struct.pack_into(">q", content, 43, producer)
    return bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "00000000000000000000.log").write_bytes(batch(0, 70) + batch(5, 80))
    (tmp_path / "00000000000000000006.log").write_bytes(batch(6, 70) + batch(9, 90) + batch(12, 70) + bytes(100))
    for name in ("00000000000000000006.index", "00000000000000000006.timeindex", "00000000000000000006.snapshot"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "leader-epoch-checkpoint").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(("count", "offset"), [(1, 12), (2, 9), (3, 6)])
def test_the_last_batches_are_those_of_the_newest_segment(folder: Path, count: int, offset: int) -> None:
    assert segments.last_batches(folder, count) == offset


@pytest.mark.parametrize(("count", "offset"), [(1, 3), (2, 3), (3, 0), (4, 0), (5, 0)])
def test_no_transaction_loses_its_marker_and_keeps_a_record(tmp_path: Path, count: int, offset: int) -> None:
    data, marker = 0x10, 0x30
    first = batch(0, 70, data, 7), batch(1, 70), batch(2, 70, marker, 7)
    batches = (*first, batch(3, 70, data, 8), batch(5, 70, marker, 8))
    (tmp_path / "00000000000000000000.log").write_bytes(b"".join(batches))
    assert segments.last_batches(tmp_path, count) == offset


def test_more_batches_than_there_are_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has 3 batches"):
        segments.last_batches(folder, 4)


def test_a_cut_keeps_what_came_before_and_removes_what_describes_it(folder: Path) -> None:
    segments.cut(folder, 9)
    assert (folder / "00000000000000000000.log").read_bytes() == batch(0, 70) + batch(5, 80)
    assert (folder / "00000000000000000006.log").read_bytes() == batch(6, 70)
    assert {each.name for each in folder.iterdir()} == {
        "00000000000000000000.log",
        "00000000000000000006.log",
        "leader-epoch-checkpoint",
    }
