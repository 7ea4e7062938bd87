"""Thumbnails of frames, made in the decoder process: any aspect ratio, in an array of fixed size.

A decoder returns frames of one shape (:class:`~streamer.video.isolation.pool.DecodePool`); it has to import only this
module.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

LONGER_SIDE = 220
"""Longer side of a thumbnail, in pixels."""
_HEAD = 2
_JPEG_QUALITY = 80


def thumbnail(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Encode a frame (height, width, 3) as its width and height, a byte each, and its pixels, padded to one size."""
    small = Image.fromarray(frame)
    small.thumbnail((LONGER_SIDE, LONGER_SIDE))
    pixels = np.asarray(small).reshape(-1)
    flat = np.zeros(_HEAD + LONGER_SIDE * LONGER_SIDE * 3, dtype=np.uint8)
    flat[:_HEAD] = small.size
    flat[_HEAD : _HEAD + len(pixels)] = pixels
    return flat


def picture(flat: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the picture (height, width, 3) from the result of :func:`thumbnail`. Raises ValueError if invalid."""
    width, height = int(flat[0]), int(flat[1])
    if not 1 <= width <= LONGER_SIDE or not 1 <= height <= LONGER_SIDE:
        raise ValueError(f"a picture of {width} x {height} pixels")
    return flat[_HEAD : _HEAD + width * height * 3].reshape(height, width, 3)


def jpeg_uri(flat: npt.NDArray[np.uint8]) -> str:
    """Return the picture from the result of :func:`thumbnail` as a JPEG in a ``data:`` URI, as a page embeds it."""
    buffer = io.BytesIO()
    Image.fromarray(picture(flat)).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
