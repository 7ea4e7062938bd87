"""Which clip is decoded when: slow ones give way, and no more than there are places have frames."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from streamer.events import Reason
from streamer.video.isolation.confinement import Layer
from streamer.video.isolation.pool import SLOW_NICE, DecodePool, PoolClosedError
from tests.support.decode_pools import GOOD_SHADE, Pools, decoded, failure, template_of
from tests.support.prepares import Act, shrink_slowly
from tests.support.processes import children
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.video.sampling.sample import SampledClip


def test_fifty_clips_pass_one_that_hangs(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=1, slow_after=0.1, timeout=30)
    with ThreadPoolExecutor(9) as threads:
        hanging = threads.submit(failure, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        others = [threads.submit(decoded, pool, clips[GOOD_SHADE]) for _ in range(50)]
        assert all(len(other.result().frames) == 3 for other in others)
        assert not hanging.done()
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result()


def priority_of_the_next(pool: DecodePool, path: Path) -> int:
    """Decode a clip, and return the priority that its process had in the end."""
    assert Layer.SECCOMP in pool.layers, "it has started, and with that forked what tries the layers"
    with ThreadPoolExecutor(1) as threads:
        flying = threads.submit(decoded, pool, path)
        wait_until(lambda: len(children(template_of(pool))) == 1)
        (pid,) = children(template_of(pool))
        last = 0
        while not flying.done():
            with contextlib.suppress(ProcessLookupError):
                last = os.getpriority(os.PRIO_PROCESS, pid)
            time.sleep(0.01)
        assert len(flying.result().frames) == 3
    return last


def test_a_slow_clip_gets_a_low_priority_and_is_still_decoded(pools: Pools, clips: dict[int, Path]) -> None:
    assert priority_of_the_next(pools.make(shrink_slowly, slow_after=0.2), clips[GOOD_SHADE]) == SLOW_NICE


def test_a_duration_that_is_normal_for_all_clips_is_not_slow(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(shrink_slowly, slow_after=0.2)
    prior = [priority_of_the_next(pool, clips[GOOD_SHADE]) for _ in range(3)]
    assert prior[0] == SLOW_NICE
    assert all(nice < SLOW_NICE for nice in prior[1:])


def test_a_slow_clip_that_is_decoded_gets_a_slot_before_waiting_clips(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=1, slow_after=0.1)
    with ThreadPoolExecutor(9) as threads:
        slow = threads.submit(decoded, pool, clips[Act.BE_SLOW])
        others = [threads.submit(decoded, pool, clips[GOOD_SHADE]) for _ in range(300)]
        assert len(slow.result().frames) == 3
        assert any(other.done() for other in others)
        assert not all(other.done() for other in others)


def test_at_most_as_many_clips_as_slots_have_frames(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=2, slow_after=0.1)
    lock = threading.Lock()
    inside, most = 0, 0

    def hold(path: Path) -> None:
        nonlocal inside, most
        with pool.sampled(path):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(hold, [clips[shade] for shade in (Act.BE_SLOW, Act.BE_SLOW, *[GOOD_SHADE] * 8)] * 2))
    assert most == 2


def test_hanging_clips_use_at_most_twice_the_slots_and_release_them_at_the_time_limit(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make(workers=2, slow_after=0.1, timeout=2)
    seen = []
    with ThreadPoolExecutor(10) as threads:
        hanging = [threads.submit(failure, pool, clips[Act.SLEEP]) for _ in range(6)]
        wait_until(lambda: len(children(template_of(pool))) == 4)
        good: Future[SampledClip[Any]] = threads.submit(decoded, pool, clips[GOOD_SHADE])
        while not good.done():
            seen.append(len(children(template_of(pool))))
            time.sleep(0.02)
        assert len(good.result().frames) == 3
        assert {each.result().reason for each in hanging} == {Reason.DECODE_TIMEOUT}
    assert max(seen) == 4
    assert pools.replaced == ["timeout"] * 6
