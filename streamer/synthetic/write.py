"""Write frames as an H.264 file."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

_CRF = 26
"""x264's constant quality: a usual web upload, with visible but mild artefacts."""


def write_h264(path: Path, frames: Iterable[npt.NDArray[np.uint8]], *, fps: int) -> int:
    """Write RGB frames, (height, width, 3) uint8 with even sides, as yuv420p in MP4; return their number.

    Frame k is shown at k / fps seconds. The same frames give the same bytes. Raises :class:`ValueError` for no
    frames, odd sides, or frames of different sizes; a file that was begun is then left behind.
    """
    count = 0
    # bitexact leaves out the library's version and the time of writing.
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as file:
        stream: Any = None
        for pixels in frames:
            height, width = pixels.shape[:2]
            if stream is None:
                if height % 2 or width % 2:
                    raise ValueError(f"the sides must be even, got {width}x{height}")
                # One thread: x264 splits the work, and so the bytes, by the number of threads.
                stream = file.add_stream(
                    "libx264", fps, options={"preset": "superfast", "crf": str(_CRF), "threads": "1"}
                )
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = Fraction(1, fps)
                stream.codec_context.flags |= av.codec.context.Flags.bitexact
            elif (stream.width, stream.height) != (width, height):
                raise ValueError(f"frame {count} is {width}x{height}, not {stream.width}x{stream.height}")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            file.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise ValueError("there are no frames to write")
        file.mux(stream.encode(None))
    return count
