"""The geometry of a model's preprocessing, without the model's library.

Clips are decoded in separate processes, which would need seconds and hundreds of megabytes more if they imported torch.
They return frames of the model's size, still as bytes: a quarter of the size of normalised ones. This is open_clip's
evaluation transform up to the conversion to a tensor, with torchvision's rounding; the encoder compares the two when it
loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Frame = npt.NDArray[np.uint8]
"""One frame: (height, width, 3), RGB."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR}
"""Interpolations by open_clip's names; open_clip uses bicubic for any other name."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resizes frames to ``height`` x ``width``; picklable, for any thread or process.

    ``resize_mode``: ``shortest`` fills the target and crops the rest, ``longest`` fits into it and pads with ``fill``,
    ``squash`` changes the aspect ratio.
    """

    height: int
    width: int
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    def __call__(self, frame: Frame) -> Frame:
        """Resize and crop one frame: (height, width, 3)."""
        image = Image.fromarray(frame)
        if self.resize_mode == "squash":
            image = self._resize(image, self.width, self.height)
        else:
            image = self._place(self._resize(image, *self._kept_ratio(image.width, image.height)))
        return np.asarray(image)

    def _kept_ratio(self, width: int, height: int) -> tuple[int, int]:
        if self.resize_mode == "shortest" and self.width == self.height:
            # torchvision's Resize rounds the longer side down.
            if width <= height:
                return self.width, int(self.width * height / width)
            return int(self.height * width / height), self.height
        # open_clip's ResizeKeepRatio rounds to the nearest.
        choose = max if self.resize_mode == "longest" else min
        ratio = choose(height / self.height, width / self.width)
        return round(width / ratio), round(height / ratio)

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        # open_clip passes its interpolation to all transforms except that of oblong targets.
        by_name = self.resize_mode != "shortest" or self.width == self.height
        resampling = _FILTERS.get(self.interpolation, Image.Resampling.BICUBIC) if by_name else Image.Resampling.BICUBIC
        # A frame that is hundreds of times wider than high may get a side of 0; it has no pixels to use.
        return image.resize((max(1, width), max(1, height)), resampling)

    def _place(self, image: Image.Image) -> Image.Image:
        """Crop the centre, or pad evenly if the image is smaller; an odd pixel of padding comes last."""
        over_x, over_y = image.width - self.width, image.height - self.height
        if over_x < 0 or over_y < 0:
            padded = Image.new("RGB", (max(image.width, self.width), max(image.height, self.height)), (self.fill,) * 3)
            padded.paste(image, (max(0, -over_x) // 2, max(0, -over_y) // 2))
            image = padded
        left, top = round(max(0, over_x) / 2), round(max(0, over_y) / 2)
        return image.crop((left, top, left + self.width, top + self.height))
