"""Small pictures of frames, made where the clip is decoded: any proportions, in an array of one size.

A decoder hands on frames of one shape (:class:`~streamer.video.isolation.pool.DecodePool`), and this module is all that
it has to import for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

LONGER_SIDE = 220
"""Pixels of a picture's longer side."""
_HEAD = 2


def thumbnail(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Make of a frame (height, width, 3) its width and height, a byte each, and its pixels, filled up to one size."""
    small = Image.fromarray(frame)
    small.thumbnail((LONGER_SIDE, LONGER_SIDE))
    pixels = np.asarray(small).reshape(-1)
    flat = np.zeros(_HEAD + LONGER_SIDE * LONGER_SIDE * 3, dtype=np.uint8)
    flat[:_HEAD] = small.size
    flat[_HEAD : _HEAD + len(pixels)] = pixels
    return flat


def picture(flat: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the picture (height, width, 3) of what :func:`thumbnail` has made. ValueError: none can be in it."""
    width, height = int(flat[0]), int(flat[1])
    if not 1 <= width <= LONGER_SIDE or not 1 <= height <= LONGER_SIDE:
        raise ValueError(f"a picture of {width} x {height} pixels")
    return flat[_HEAD : _HEAD + width * height * 3].reshape(height, width, 3)
