"""Clips that crash their process, hang or take all memory; templates that die; machines that lack something."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from streamer.events import Reason
from streamer.machine import Lack, MachineError
from streamer.video.errors import Retry
from streamer.video.isolation import process
from streamer.video.isolation.pool import DecodePool
from streamer.video.isolation.process import _FORK_SECONDS
from streamer.video.sampling.sample import Sampling
from tests.support import ordinary
from tests.support.decode_pools import GOOD_SHADE, MEMORY, Pools, decoded, failure, is_alive, template_of
from tests.support.prepares import Act, act
from tests.support.processes import children
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CRASHES = {
    Act.SEGFAULT: "the decoder's process killed by SIGSEGV",
    Act.KILL: "the decoder's process killed by SIGKILL",
    Act.EXIT: "the decoder's process ended with exit code 7",
    Act.RAISE: "LookupError: of prepare's own",
    Act.ANSWER_NONSENSE: "the decoder's process sent an unreadable response: a header of 4294967295 bytes",
    Act.CLAIM_ANOTHER_SHAPE: (
        "the decoder's process sent an unreadable response: frames of [16, 17, 3], where [16, 16, 3] are prepared"
    ),
    Act.POINT_OUTSIDE: "the decoder's process sent an unreadable response: frames [1] of 1 for 1 samples",
    Act.CHANGE_SHAPE: "TypeError: a prepared frame is uint8 (",
}


@pytest.mark.parametrize("kind", CRASHES, ids=lambda kind: kind.name.lower())
def test_a_crash_costs_its_clip_and_no_other(pools: Pools, clips: dict[int, Path], kind: Act) -> None:
    pool = pools.make()
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(decoded, pool, clips[Act.BE_SLOW]), threads.submit(decoded, pool, clips[GOOD_SHADE])]
        error = failure(pool, clips[kind])
        assert all(len(other.result().frames) == 3 for other in others)
    assert (error.reason, error.retry) == (Reason.DECODER_CRASHED, Retry.ONCE)
    assert error.detail.startswith(CRASHES[kind])
    assert pools.replaced == ["crashed"]
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3


def test_a_clip_that_takes_all_memory_fails_and_no_other_notices(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    error = failure(pool, clips[Act.TAKE_ALL_MEMORY])
    assert error.reason in {Reason.DECODE_FAILED, Reason.DECODER_CRASHED}
    assert error.retry is Retry.ONCE
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3


def test_a_clip_that_does_not_end_is_ended(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(timeout=0.5)
    error = failure(pool, clips[Act.SLEEP])
    assert (error.reason, error.retry) == (Reason.DECODE_TIMEOUT, Retry.ONCE)
    assert error.detail == "not decoded after 0.5 s"
    assert pools.replaced == ["timeout"]
    assert children(template_of(pool)) == []


@contextmanager
def busy_processor() -> Iterator[None]:
    """Start what is started meanwhile, and the processes of this one, on a processor with one that always runs."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
        other.kill()
        other.wait()


def test_time_for_which_others_had_the_processor_does_not_count(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decode has a low priority there, and its time is not over."""
    monkeypatch.setattr(process, "STARVED", 1000)  # on a busy machine there are more of the others
    timeout = 2.0
    with busy_processor():
        pool = pools.make(timeout=timeout, slow_after=0.1)
        decoded(pool, clips[GOOD_SHADE])
        began = time.monotonic()
        assert len(decoded(pool, clips[Act.USE_SOME_TIME]).frames) == 3
        assert time.monotonic() - began > timeout, "the processor was not busy"


def test_a_clip_that_others_leave_no_processor_is_given_up_in_the_end(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STARVED", 1)
    with busy_processor():
        pool = pools.make(timeout=2.0, slow_after=0.1)
        error = failure(pool, clips[Act.USE_SOME_TIME])
    assert (error.reason, error.detail) == (Reason.DECODE_TIMEOUT, "not decoded after 2 s")


def test_the_limit_of_processor_time_ends_what_the_service_does_not(pools: Pools, clips: dict[int, Path]) -> None:
    error = failure(pools.make(), clips[Act.USE_ALL_TIME])
    assert (error.reason, error.retry) == (Reason.DECODE_TIMEOUT, Retry.ONCE)
    assert error.detail == "120 s of processor time used"
    assert pools.replaced == ["timeout"]


def test_a_frame_that_does_not_fit_into_the_memory_limit_fails_its_clip(pools: Pools, tmp_path: Path) -> None:
    """A GIF of 30 bytes that claims 65535 x 65535 pixels, with the limit of pixels out of its way."""
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;")
    pool = DecodePool(
        Sampling(interval=0.1, max_frames=8, max_pixels=1 << 40), act, workers=1, timeout=60, memory=MEMORY
    )
    try:
        assert failure(pool, bomb).reason in {Reason.DECODE_FAILED, Reason.DECODER_CRASHED}
    finally:
        pool.close()
    assert failure(pools.make(), bomb).reason in {Reason.CLIP_TOO_LARGE, Reason.DECODE_FAILED}


def test_clips_that_were_decoded_when_the_template_was_killed_are_decoded_again_unnoticed(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    killed = template_of(pool)
    with ThreadPoolExecutor(2) as threads:
        flying = [threads.submit(decoded, pool, clips[Act.BE_SLOW]) for _ in range(2)]
        wait_until(lambda: len(children(killed)) == 2)
        os.kill(killed, signal.SIGKILL)
        assert all(len(each.result().frames) == 3 for each in flying)
    assert template_of(pool) != killed
    assert pools.replaced == []


def test_a_template_that_was_killed_while_idle_is_replaced(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    os.kill(template_of(pool), signal.SIGKILL)
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


def test_a_template_that_cannot_start_is_the_machine_s_fault_and_the_next_one_may(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        pool = pools.make()
        with pytest.raises(MachineError) as raised, pool.sampled(clips[GOOD_SHADE]):
            pass
        assert raised.value.lack is Lack.PROCESSES
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


def test_a_template_that_somebody_has_stopped_is_replaced(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    stopped = template_of(pool)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert time.monotonic() - began < _FORK_SECONDS, "it was not waited for"
    assert template_of(pool) != stopped
    assert not is_alive(stopped)


def test_a_lack_of_descriptors_is_the_machine_s_fault(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # From none at all to one short of what a clip takes: each place at which one can be missing.
    lacking = []
    for spare in range(16):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
        try:
            with pool.sampled(clips[GOOD_SHADE]) as clip:
                assert len(clip.frames) == 3
        except MachineError as error:
            lacking.append(error.lack)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert 3 <= len(lacking) < 16
    assert set(lacking) == {Lack.DESCRIPTORS}
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


NO_FORK = """
import resource
import sys
from pathlib import Path

from tests.support.prepares import shrink
from streamer.machine import MachineError
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import Sampling

pool = DecodePool(Sampling(0.1, 8), shrink, workers=1, timeout=60, memory=1 << 30)

def count():
    with pool.sampled(Path(sys.argv[1])) as clip:
        return len(clip.frames)

print(count())
template = pool._template._process.pid
limits = resource.getrlimit(resource.RLIMIT_NPROC)
resource.prlimit(template, resource.RLIMIT_NPROC, (0, limits[1]))
try:
    print(count())
except MachineError as error:
    print(error)
resource.prlimit(template, resource.RLIMIT_NPROC, limits)
print(count(), pool._template._process.pid == template)
pool.close()
"""


def test_a_lack_of_processes_is_the_machine_s_fault(clips: dict[int, Path]) -> None:
    with ordinary.open_folder() as folder:
        clip = shutil.copy(clips[GOOD_SHADE], folder)
        told = ordinary.run("-c", NO_FORK, clip, as_nobody=True)
    assert told == "3\nprocesses: the decoders' template cannot fork\n3 True\n"
