"""Sizes are compared with what the machine gives, as far as that can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streamer.resources import Available, Usage, available, contradictions, memory_limit, resident

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
USAGE = Usage(own=2 * GIB, decoders=8 * GIB, downloads=6 * GIB)


@pytest.mark.parametrize(
    ("there_is", "words"),
    [
        (Available(None, 6 * GIB, disk_is_memory=True), []),
        (Available(10 * GIB, 6 * GIB, disk_is_memory=False), []),
        (Available(10 * GIB - 1, 6 * GIB, disk_is_memory=False), ["the memory limit is 10240 MiB"]),
        (Available(15 * GIB, 7 * GIB, disk_is_memory=True), ["the downloads, 6144 MiB, as the temporary folder"]),
        (Available(GIB, GIB, disk_is_memory=False), ["decode_workers", "download_bytes is 6144 MiB"]),
    ],
)
def test_what_does_not_fit_is_said_with_the_settings_that_change_it(there_is: Available, words: list[str]) -> None:
    found = contradictions(USAGE, there_is)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_the_smallest_limit_of_the_cgroups_around_a_process_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n")
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    assert memory_limit(tmp_path, own) is None
    (inner / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path, own) is None
    (inner.parent / "memory.max").write_text(f"{8 * GIB}\n")
    assert memory_limit(tmp_path, own) == 8 * GIB
    (inner / "memory.max").write_text(f"{3 * GIB}\n")
    assert memory_limit(tmp_path, own) == 3 * GIB
    own.write_text("0::/../../seen/from/outside\n")  # the namespace's root is the container's own group
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    assert memory_limit(tmp_path, own) == GIB


def test_a_limit_of_version_1_counts_unless_it_is_none(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/container\n0::/\n")
    (tmp_path / "memory" / "container").mkdir(parents=True)
    limit = tmp_path / "memory" / "container" / "memory.limit_in_bytes"
    limit.write_text("9223372036854771712\n")
    assert memory_limit(tmp_path, own) is None
    limit.write_text(f"{GIB}\n")
    assert memory_limit(tmp_path, own) == GIB


def test_this_machine_can_be_looked_at() -> None:
    there_is = available()
    assert there_is.disk > 0
    assert there_is.memory is None or there_is.memory > resident() > 0
