"""How a picture is cropped, turned and mirrored before it is shown: by a display matrix, or the orientation of EXIF.

A matrix turns as the ffmpeg program does it: its angle is rounded to whole degrees, and applied if it is a number of
quarter turns then. A singular matrix turns nothing.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Image = npt.NDArray[Any]

EXIF_CODECS = frozenset({"mjpeg", "webp"})
"""The codecs whose encoded pictures may state an orientation."""
_ORIENTATION = 0x0112
_SHORT = 3
_MOST_TAGS = 1_000


class Matrix(NamedTuple):
    """The linear part of a display matrix: x' = a x + c y, y' = b x + d y (FFmpeg's libavutil/display.h)."""

    a: int
    b: int
    c: int
    d: int

    @classmethod
    def of(cls, side_data: bytes) -> Matrix:
        """Read nine numbers: a b u, c d v, x y w."""
        a, b, _, c, d, *_ = np.frombuffer(side_data, dtype=np.int32).tolist()
        return cls(a, b, c, d)


EXIF = {
    2: Matrix(-1, 0, 0, 1),
    3: Matrix(-1, 0, 0, -1),
    4: Matrix(1, 0, 0, -1),
    5: Matrix(0, 1, 1, 0),
    6: Matrix(0, 1, -1, 0),
    7: Matrix(0, -1, -1, 0),
    8: Matrix(0, -1, 1, 0),
}
"""The matrix of each EXIF orientation (CIPA DC-008, section 4.6.4) that turns or mirrors."""


class Crop(NamedTuple):
    """Pixels that are cut off on each side, of a picture of ``size`` (width, height) as it is coded."""

    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]

    def applied(self, image: Image, size: tuple[int, int]) -> Image:
        """Cut a picture (height, width, ...), which was ``size`` when it was decoded, and may be smaller now."""
        if size != self.size:
            return image
        height, width = image.shape[:2]
        across, down = width / size[0], height / size[1]
        rows = slice(round(self.top * down), height - round(self.bottom * down))
        return image[rows, round(self.left * across) : width - round(self.right * across)]


def upright(image: Image, matrix: Matrix) -> Image:
    """Turn and mirror a picture (height, width, ...) by a matrix; by other angles than quarter turns it is not."""
    across, down = math.hypot(matrix.a, matrix.c), math.hypot(matrix.b, matrix.d)
    if not across or not down:
        return image
    degrees = math.degrees(math.atan2(matrix.b / down, matrix.a / across))
    turned = math.copysign(math.floor(abs(degrees) + 0.5), degrees) % 360
    if turned in {90, 270}:
        columns, rows = (matrix.c < 0, False) if turned == 90 else (matrix.c < 0, True)  # noqa: PLR2004
        image = image.swapaxes(0, 1)
    elif turned in {0, 180}:
        columns, rows = turned == 180 and matrix.a < 0, matrix.d < 0  # noqa: PLR2004
    else:
        return image
    return image[:: -1 if rows else 1, :: -1 if columns else 1]


def exif_matrix(picture: bytes) -> Matrix | None:
    """Return the matrix that the EXIF data of an encoded JPEG or WebP picture state; None if none, or no turn."""
    tags = _in_webp(picture) if picture[:4] == b"RIFF" else _in_jpeg(picture)
    return EXIF.get(_orientation(tags)) if tags is not None else None


def _in_jpeg(picture: bytes) -> bytes | None:
    """Return the EXIF data of a JPEG picture (ISO/IEC 10918-1, annex B)."""
    at = 2
    while at + 4 <= len(picture) and picture[at] == 0xFF:  # noqa: PLR2004
        marker, end = picture[at + 1], at + 2 + int.from_bytes(picture[at + 2 : at + 4])
        if marker == 0xE1 and picture[at + 4 : at + 10] == b"Exif\0\0":  # noqa: PLR2004
            return picture[at + 10 : end]
        if marker == 0xDA:  # noqa: PLR2004 - the picture itself
            return None
        at = end
    return None


def _in_webp(picture: bytes) -> bytes | None:
    """Return the EXIF data of a WebP file (RFC 9649, section 2.7)."""
    at = 12
    while at + 8 <= len(picture):
        end = at + 8 + int.from_bytes(picture[at + 4 : at + 8], "little")
        if picture[at : at + 4] == b"EXIF":
            return picture[at + 8 : end].removeprefix(b"Exif\0\0")
        at = end + end % 2
    return None


def _orientation(tags: bytes) -> int:
    """Return the orientation in TIFF tags; 0 if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tags[:4])
    if order is None or len(tags) < 8:  # noqa: PLR2004
        return 0
    (at,) = struct.unpack_from(order + "I", tags, 4)
    if at + 2 > len(tags):
        return 0
    (count,) = struct.unpack_from(order + "H", tags, at)
    for number in range(min(count, _MOST_TAGS)):
        entry = at + 2 + 12 * number
        if entry + 12 > len(tags):
            return 0
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tags, entry)
        if tag == _ORIENTATION:
            return int(value) if kind == _SHORT else 0
    return 0
