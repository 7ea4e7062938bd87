"""Small clips that are encoded for a test, picture by picture, and what sampling says of one that it refuses."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamer.video import ClipError, Retry, Sampling
from streamer.video.sampling.sample import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Rgb = npt.NDArray[np.uint8]


def pts_of(timed: av.VideoFrame | av.Packet[Any]) -> int:
    assert timed.pts is not None
    return timed.pts


def picture(number: int, width: int, height: int) -> Rgb:
    """A gradient that differs in every corner, and in every frame by its blue."""
    rows, columns = np.mgrid[0:height, 0:width]
    blue = np.full((height, width), number * 8 % 256)
    return np.stack([rows * 255 // height, columns * 255 // width, blue], axis=-1).astype(np.uint8)


def make(
    path: Path,
    times: Sequence[int],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    tick: Fraction = Fraction(1, 30),
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    alter: Callable[[av.VideoStream], None] = lambda _: None,
) -> Path:
    """Write one picture at each of ``times`` (ticks)."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = cast("av.VideoStream", container.add_stream(codec, rate=30, options=options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = tick
        alter(stream)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def refusal(path: Path) -> ClipError:
    with pytest.raises(ClipError) as caught:
        sample(path, Sampling(0.5, 64), np.copy)
    assert caught.value.retry is Retry.NEVER
    assert str(path) not in caught.value.detail
    return caught.value
