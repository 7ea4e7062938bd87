"""What the tests of the decode pool let a clip's process do with a frame; these processes import it.

A clip says by the shade of its frames what is to happen: one of :class:`Act`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import signal
import sys
import time
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

REPORT_BYTES = 32_768
SLOW_SECONDS = 0.4
BUSY_SECONDS = 0.1
MOST_DESCRIPTORS = 256


class Act(IntEnum):
    """What a frame of this shade makes its process do; any other shade nothing out of the ordinary."""

    SEGFAULT = 20
    KILL = 40
    EXIT = 60
    RAISE = 80
    TAKE_ALL_MEMORY = 100
    USE_ALL_TIME = 120
    SLEEP = 140
    BE_SLOW = 160
    USE_SOME_TIME = 0
    ANSWER_NONSENSE = 180
    CLAIM_ANOTHER_SHAPE = 200
    CHANGE_SHAPE = 220
    POINT_OUTSIDE = 240


def shrink(frame: Frame) -> Frame:
    return np.ascontiguousarray(frame[:16, :16])


def digest(frame: Frame) -> Frame:
    """Give what tells frames apart, whatever their size."""
    told = hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).digest()
    return np.frombuffer(told, dtype=np.uint8)


def enlarge(_frame: Frame) -> Frame:
    return np.zeros((8_000, 8_000, 1), dtype=np.uint8)


def act(frame: Frame) -> Frame:
    """Do what the frame's shade says, and give a corner of it."""
    shade = round(float(frame.mean()) / 20) * 20
    if shade == Act.CHANGE_SHAPE:
        return np.resize(frame, (16, 16 + time.monotonic_ns() % 1_000, 3))
    if shade in ACTIONS:
        ACTIONS[shade]()
    return shrink(frame)


def _raise() -> None:
    raise LookupError("of prepare's own")


def _take_all_memory() -> None:
    taken = []
    while True:
        taken.append(np.ones(1 << 24, dtype=np.uint8))


def _use_all_time() -> None:
    signal.raise_signal(signal.SIGXCPU)  # as the kernel does when the limit is reached


def _use_some_time() -> None:
    end = time.process_time() + BUSY_SECONDS
    while time.process_time() < end:
        pass


def _answer(message: bytes) -> None:
    os.write(3, message)
    os._exit(0)


def _claim(shape: list[int], frame_of: list[int]) -> None:
    header = {"times_ms": [0], "frames": 1, "frame_of": frame_of, "duration_ms": 1, "decoded": 1}
    encoded = json.dumps({"type": "Sampled", **header, "partial": False, "recoloured": False, "shape": shape}).encode()
    _answer(len(encoded).to_bytes(4, "big") + encoded)


ACTIONS: dict[int, Callable[[], object]] = {
    Act.SEGFAULT: lambda: signal.raise_signal(signal.SIGSEGV),
    Act.KILL: lambda: signal.raise_signal(signal.SIGKILL),
    Act.EXIT: lambda: os._exit(7),
    Act.RAISE: _raise,
    Act.TAKE_ALL_MEMORY: _take_all_memory,
    Act.USE_ALL_TIME: _use_all_time,
    Act.SLEEP: lambda: time.sleep(3600),
    Act.BE_SLOW: lambda: time.sleep(SLOW_SECONDS),
    Act.USE_SOME_TIME: _use_some_time,
    Act.ANSWER_NONSENSE: lambda: _answer(b"\xff" * 64),
    Act.CLAIM_ANOTHER_SHAPE: lambda: _claim([16, 17, 3], [0]),
    Act.POINT_OUTSIDE: lambda: _claim([16, 16, 3], [1]),
}


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def report(_frame: Frame) -> Frame:
    """Give what the process can tell of itself as JSON, in a frame."""
    told = {
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "environment": sorted(os.environ),
        "descriptors": [number for number in range(MOST_DESCRIPTORS) if _is_open(number)],
        "interrupt_ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "terminate_default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "limits": {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
            for name in ("AS", "CORE", "CPU", "FSIZE", "NOFILE")
        },
    }
    return np.frombuffer(json.dumps(told).encode().ljust(REPORT_BYTES), dtype=np.uint8)


def shrink_slowly(frame: Frame) -> Frame:
    time.sleep(SLOW_SECONDS)
    return shrink(frame)
