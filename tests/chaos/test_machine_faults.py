"""What the harness does to disks, processes and the store's file is what it says, and is undone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streamer.store.protocol import TruncatedStoreError
from tests.chaos.machine import Filler, _visible, can_limit_processes, can_mount, no_more_processes, small_disk
from tests.chaos.machine_faults import truncated
from tests.support.lmdb_stores import in_a_process, is_whole, open_lmdb, put_clips

if TYPE_CHECKING:
    from pathlib import Path

FORKER = """
import os
import sys

for line in sys.stdin:
    try:
        pid = os.fork()
    except OSError as error:
        print(error.strerror, flush=True)
    else:
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        print("forked", flush=True)
"""


def hold(folder: Path, clips: int) -> None:
    store = open_lmdb(folder)
    assert all(is_whole(store, number) for number in range(clips))
    store.close()


def refuse(folder: Path) -> None:
    with pytest.raises(TruncatedStoreError):
        open_lmdb(folder)


def test_a_store_whose_file_was_truncated_for_a_while_has_all_it_had(tmp_path: Path) -> None:
    in_a_process(put_clips, tmp_path, 0, 19)
    before = (tmp_path / "data.mdb").read_bytes()
    with truncated(tmp_path / "data.mdb", 0.5) as missing:
        assert 0 < missing == len(before) - (tmp_path / "data.mdb").stat().st_size
        in_a_process(refuse, tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == before
    in_a_process(put_clips, tmp_path, 20, 20)
    in_a_process(hold, tmp_path, 21)


def test_a_disk_is_full_until_the_filler_is_gone() -> None:
    if not can_mount():
        pytest.skip("only root may mount a disk")
    with small_disk() as disk:
        with Filler(disk) as filler:
            for _ in range(2):
                with pytest.raises(OSError, match="No space left"):
                    (disk / "more").write_bytes(b"x")
                (disk / "more").unlink(missing_ok=True)
                filler.fill()
        (disk / "more").write_bytes(bytes(1 << 20))
    assert not disk.exists()


def told(process: subprocess.Popen[str]) -> str:
    """Have a forker fork, and return what came of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_cgroup_is_found_where_a_container_is_shown_the_way_to_it_and_where_not(tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    assert _visible(tmp_path, "/outer/inner") == tmp_path / "outer" / "inner"
    assert _visible(tmp_path, "/elsewhere") == tmp_path
    assert _visible(tmp_path, "/") == tmp_path


def test_a_process_cannot_fork_for_a_while() -> None:
    if not can_limit_processes():
        pytest.skip("root needs a cgroup with a controller of processes")
    with subprocess.Popen(
        [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert told(process) == "forked"
        with no_more_processes(process.pid):
            assert told(process) == "Resource temporarily unavailable"
        assert told(process) == "forked"
