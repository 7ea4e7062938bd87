"""A small and soft view of frames, as the stand-in engine sees them; made where the clip is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Frame = npt.NDArray[np.uint8]

_VIEW_PIXELS = 48
"""Longer side of the picture that is left of a frame."""


@dataclass(frozen=True, slots=True)
class WeakerView:
    """Prepares frames as ``prepare`` does, but of a picture that has lost its detail."""

    prepare: Callable[[Frame], Frame]

    def __call__(self, frame: Frame) -> Frame:
        """Prepare one frame (height, width, 3)."""
        seen = Image.fromarray(frame)
        small = seen.copy()
        small.thumbnail((_VIEW_PIXELS, _VIEW_PIXELS))
        # Enlarged again, since a model's preprocessing expects no thumbnails; what was lost stays lost.
        return self.prepare(np.asarray(small.resize(seen.size, Image.Resampling.BILINEAR)))
