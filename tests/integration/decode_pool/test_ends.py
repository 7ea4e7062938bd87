"""What is left of processes, descriptors and memory: after a close, a killed service and hundreds of clips."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer.video.isolation.pool import DecodePool, PoolClosedError
from tests.support.decode_pools import GOOD_SHADE, Pools, decoded, failure, is_alive, template_of
from tests.support.prepares import Act
from tests.support.processes import children
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


ORPHANS = """
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.support.prepares import act
from streamer.video.isolation.pool import DecodePool, PoolClosedError
from streamer.video.sampling.sample import Sampling

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans fall to it, as to process 1
from tests.support.processes import children

pool = DecodePool(Sampling(0.1, 8), act, workers=2, timeout=60, memory=1 << 30, slow_after=60)

def decode():
    try:
        with pool.sampled(Path(sys.argv[1])):
            pass
    except PoolClosedError:
        pass

threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads:
    thread.start()


def decoding_template():
    while True:
        template = pool._template  # None while it is replaced
        if template is not None and len(children(template._process.pid)) == 2:
            return template._process.pid
        time.sleep(0.01)


# The clips hang; they are decoded again when their template has died once.
first = decoding_template()
os.kill(first, signal.SIGKILL)
while decoding_template() == first:
    time.sleep(0.01)
pool.close()
for thread in threads:
    thread.join()
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child is left")
"""


def test_no_zombie_is_left_where_orphans_fall_to_the_service(clips: dict[int, Path]) -> None:
    """As they do to process 1 of a container."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS, clips[Act.SLEEP]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("no child is left\n", "")


def test_close_ends_what_is_being_decoded_at_once(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(decoded, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        processes = [template_of(pool), *children(template_of(pool))]
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result(timeout=30)
    wait_until(lambda: not any(is_alive(pid) for pid in processes))
    with pytest.raises(PoolClosedError):
        decoded(pool, clips[GOOD_SHADE])
    assert pools.replaced == []


PARENT = """
import sys
from pathlib import Path

with open(sys.argv[1], "a") as imported:
    print("imported", file=imported)

from tests.support.prepares import act
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import Sampling

pool = DecodePool(Sampling(0.1, 8), act, workers=1, timeout=600, memory=1 << 30)
print(pool._template._process.pid, flush=True)
with pool.sampled(Path(sys.argv[2])):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_service_and_none_runs_its_main_module(
    clips: dict[int, Path], tmp_path: Path, how: signal.Signals
) -> None:
    script, imports = tmp_path / "parent.py", tmp_path / "imports"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, imports, clips[Act.SLEEP]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        template = int(parent.stdout.readline())
        wait_until(lambda: len(children(template)) == 1)
        processes = [template, *children(template)]
        parent.send_signal(how)
    wait_until(lambda: not any(is_alive(pid) for pid in processes), seconds=10)
    assert imports.read_text() == "imported\n"


def test_neither_descriptors_nor_memory_leak(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=4)

    def run(count: int, path: Path, end: Callable[[DecodePool, Path], object]) -> None:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(end, pool, path) for _ in range(count)]:
                done.result()

    run(50, clips[GOOD_SHADE], decoded)
    run(10, clips[Act.SEGFAULT], failure)
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident()  # noqa: PTH208 - names are enough
    run(200, clips[Act.SEGFAULT], failure)
    run(300, clips[GOOD_SHADE], decoded)
    # Fewer may be open, since what earlier tests left is collected meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # noqa: PTH208
    assert resident() < memory + (16 << 20)
    assert len(os.listdir(f"/proc/{template_of(pool)}/fd")) < 16  # noqa: PTH208


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
