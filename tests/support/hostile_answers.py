"""What a file that has taken over its decoder could answer, each from a decoder of its own; the processes import it."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_SMALLEST_WIDTH, _HEIGHT = 64, 96
SHAPE = [4]
"""Of the prepared frame."""
_ANSWERS = 3
_PIECES = 20_000
NOT_CONFINED = 64
"""The exit code of a decoder that could not be confined."""


def _header(kind: str, **fields: Any) -> bytes:
    return _framed(json.dumps({"type": kind, **fields}).encode())


def _framed(encoded: bytes) -> bytes:
    return len(encoded).to_bytes(4, "big") + encoded


def _sampled(**changed: Any) -> bytes:
    fields = {
        "times_ms": [0],
        "frames": 1,
        "frame_of": [0],
        "duration_ms": 1,
        "decoded": 1,
        "partial": False,
        "recoloured": False,
    }
    return _header("Sampled", **{**fields, "shape": SHAPE, **changed})


def _say(message: bytes) -> None:
    os.write(_ANSWERS, message)
    os._exit(0)


def _hang(message: bytes) -> None:
    os.write(_ANSWERS, message)
    time.sleep(3600)


def _trickle() -> None:
    """Send a header byte by byte, each when the last one is likely to have been read."""
    os.write(_ANSWERS, _PIECES.to_bytes(4, "big"))
    for _ in range(_PIECES):
        os.write(_ANSWERS, b" ")
        os.sched_yield()
    os._exit(0)


def _start_threads() -> None:
    try:
        threading.Thread(target=time.sleep, args=(1,)).start()
    except RuntimeError as error:
        _say(_header("Raised", detail=str(error)))
    _say(_header("Raised", detail="a thread runs"))


ANSWERS: dict[str, Callable[[], object]] = {
    "claim not to be confined": lambda: os._exit(NOT_CONFINED),
    "claim it with another bit": lambda: os._exit(NOT_CONFINED | 0x101),
    "begin and say no more": lambda: _hang(b"\0"),
    "a header without its frames": lambda: _hang(_sampled()),
    "trickle": _trickle,
    "nest deeply": lambda: _say(_framed(b'{"type":"Sampled","x":' + b"[" * 200_000)),
    "a number of a million digits": lambda: _say(_framed(b'{"type":"Sampled","decoded":' + b"9" * 1_000_000)),
    "half of a surrogate pair": lambda: _say(_framed(b'{"type":"Raised","detail":"\\ud800"}')),
    "nothing": lambda: _say(b""),
    "an empty header": lambda: _say(_framed(b"")),
    "count more frames than can be": lambda: _say(_sampled(decoded=1 << 61)),
    "be as long as a life": lambda: _say(_sampled(duration_ms=1 << 61)),
    "refuse the event": lambda: _say(_header("Refused", reason="from_the_future", detail="", retry=1)),
    "an unknown reason": lambda: _say(_header("Refused", reason="because", detail="", retry=1)),
    "a megabyte of detail": lambda: _say(_header("Raised", detail="x" * ((1 << 20) - 64))),
    "more frames than samples": lambda: _say(_sampled(frames=2)),
    "more samples than asked for": lambda: _say(_sampled(times_ms=[0] * 9, frame_of=[0] * 9)),
    "a frame before the first": lambda: _say(_sampled(frame_of=[-1])),
    "no shape": lambda: _say(_sampled(shape=[])),
    "go on after the end": lambda: _say(_sampled() + bytes(4) + b"\xff" * 100_000),
    "start threads": _start_threads,
}


def answer(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give, for a frame of :func:`clip`'s, the answer that its width tells, in place of the decoder's own."""
    height, width, _ = frame.shape
    if height == _HEIGHT:
        [*ANSWERS.values()][width - _SMALLEST_WIDTH]()
    return np.zeros(SHAPE, dtype=np.uint8)


def clip(folder: Path, name: str) -> Path:
    """Write a clip whose decoder gives this answer; the frames of the template's rehearsal have another height."""
    width = _SMALLEST_WIDTH + list(ANSWERS).index(name)
    path = folder / "hostile.y4m"
    path.write_bytes(f"YUV4MPEG2 W{width} H{_HEIGHT} F1:1 C444\nFRAME\n".encode() + bytes(3 * width * _HEIGHT))
    return path
