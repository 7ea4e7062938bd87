"""Answers of a decoder that a file has taken over: each costs its own clip, and neither time nor trust beyond that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from streamer.events import Reason
from streamer.video.errors import Retry
from streamer.video.isolation import pool as pool_module
from streamer.video.isolation.process import Process
from tests.support.decode_pools import Pools, decoded, failure, template_of
from tests.support.hostile_answers import ANSWERS, answer, clip
from tests.support.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.video.errors import ClipError
    from streamer.video.isolation.pool import DecodePool

UNREADABLE = "the decoder's process sent an unreadable response: "
CRASHES = {
    # Neither is the machine's fault, for which uploads would wait and the service not be ready.
    "claim not to be confined": "the decoder's process killed by SIGSEGV",
    "claim it with another bit": "the decoder's process killed by SIGSEGV",
    "nest deeply": UNREADABLE + "a header that nests too deeply",
    "a number of a million digits": UNREADABLE + "",
    "half of a surrogate pair": UNREADABLE + "",
    "nothing": "the decoder's process ended with exit code 0",
    "an empty header": UNREADABLE + "",
    "count more frames than can be": UNREADABLE + "2305843009213693952 frames decoded",
    "be as long as a life": UNREADABLE + "a length of 2305843009213693952 ms",
    "refuse the event": UNREADABLE + "refused as from_the_future",
    "an unknown reason": UNREADABLE + "Invalid enum value 'because'",
    "a megabyte of detail": "x" * 1_000,
    "more frames than samples": UNREADABLE + "2 frames for 1 samples",
    "more samples than asked for": UNREADABLE + "1 frames for 9 samples",
    "a frame before the first": UNREADABLE + "Expected `int` >= 0",
    "no shape": UNREADABLE + "frames of [], where [4] are prepared",
    # A filter that let it start threads would let it use up those of the service's container.
    "start threads": "can't start new thread",
}
TRICKLE = "trickle"
SLOW = {"begin and say no more", "a header without its frames"}
HARMLESS = {"go on after the end"}


def test_each_answer_has_its_test() -> None:
    assert CRASHES.keys() | SLOW | HARMLESS | {TRICKLE} == ANSWERS.keys()


@pytest.fixture(scope="module")
def shared() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(scope="module")
def pool(shared: Pools) -> DecodePool:
    return shared.make(answer)


@pytest.fixture
def replaced(shared: Pools) -> list[str]:
    shared.replaced.clear()
    return shared.replaced


def ended(pool: DecodePool, folder: Path, name: str) -> ClipError:
    """Return the error that the clip ends with; show that nothing of it stays."""
    error = failure(pool, clip(folder, name))
    assert children(template_of(pool)) == []
    assert len(error.detail) <= 1_000
    return error


@pytest.mark.parametrize("name", CRASHES)
def test_an_answer_that_cannot_be_is_a_crash_of_its_clip(
    pool: DecodePool, replaced: list[str], tmp_path: Path, name: str
) -> None:
    template = template_of(pool)
    error = ended(pool, tmp_path, name)
    assert (error.reason, error.retry) == (Reason.DECODER_CRASHED, Retry.ONCE)
    assert error.detail.startswith(CRASHES[name])
    assert replaced == ["crashed"]
    assert template_of(pool) == template, "it is not at fault"


@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_response_that_does_not_go_on_is_given_up_long_before_the_clip_s_time_is_over(
    pool: DecodePool, replaced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It holds a slot, and would otherwise escape what is done about slow clips by its first byte."""
    monkeypatch.setattr(pool_module, "_RESPONSE_SECONDS", 0.5)
    error = ended(pool, tmp_path, name)
    assert (error.reason, error.retry) == (Reason.DECODE_TIMEOUT, Retry.ONCE)
    assert error.detail == "the decoder's response was not complete 0.5 s after its first byte"
    assert replaced == ["timeout"]


def test_bytes_that_come_one_by_one_cost_the_service_no_time(
    pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel collects them: the thread that waits does not run for each of 20,000."""
    asked: list[float] = []
    left: Any = vars(Process)["left"]

    def counted(process: Process) -> float:
        asked.append(left.fget(process))
        return asked[-1]

    monkeypatch.setattr(Process, "left", property(counted))
    monkeypatch.setattr(pool_module, "_RESPONSE_SECONDS", 60.0)
    assert ended(pool, tmp_path, TRICKLE).reason is Reason.DECODER_CRASHED
    assert len(asked) < 50


def test_what_follows_the_frames_is_not_read(pool: DecodePool, tmp_path: Path) -> None:
    sampled = decoded(pool, clip(tmp_path, "go on after the end"))
    assert [frame.tolist() for frame in sampled.frames] == [[0, 0, 0, 0]]


def test_hostile_answers_leave_no_descriptor_open(pool: DecodePool, tmp_path: Path) -> None:
    path = clip(tmp_path, "nest deeply")
    failure(pool, path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    for _ in range(5):
        failure(pool, path)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_clips_that_use_up_their_time_do_not_make_it_the_measure_for_others() -> None:
    pools = Pools()
    pool = pools.make(timeout=120.0, slow_after=0.25)
    try:
        assert pool._slow_from() == 0.25
        pool._lately.extend([1.0] * 33)
        assert pool._slow_from() == 4.0
        pool._lately.extend([119.0] * 33)
        assert pool._slow_from() == 30.0
    finally:
        pools.close()
