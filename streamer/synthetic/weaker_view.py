"""The stand-in engine's degraded view of frames, small and blurred; computed in the decoder process."""

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
"""Longer side of a reduced frame, in pixels."""


@dataclass(frozen=True, slots=True)
class WeakerView:
    """Prepares frames as ``prepare`` does, after removing their detail."""

    prepare: Callable[[Frame], Frame]

    def __call__(self, frame: Frame) -> Frame:
        """Prepare one frame (height, width, 3)."""
        seen = Image.fromarray(frame)
        small = seen.copy()
        small.thumbnail((_VIEW_PIXELS, _VIEW_PIXELS))
        # Enlarged again, because a model's preprocessing expects larger frames; the lost detail is not restored.
        return self.prepare(np.asarray(small.resize(seen.size, Image.Resampling.BILINEAR)))
