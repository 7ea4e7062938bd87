"""An encoder that names colours, whose ``prepare`` the process of a decoder can import and answer with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.support.encoders import FakeEncoder, mean_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from streamer.preprocessing import Frame

AXES = {"red": 0, "green": 1, "blue": 2}


class MeanColour(FakeEncoder):
    """An encoder whose vector of a frame is its mean colour, and of a text the colour that it names."""

    @property
    def prepare(self) -> Callable[[Frame], Frame]:
        """What reduces a frame to its mean colour, (3,) uint8."""
        return whole_mean_colour

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, 3): the axis of each colour."""
        return np.eye(3, dtype=np.float32)[[AXES[query] for query in queries]]


def whole_mean_colour(frame: Frame) -> Frame:
    """Return the mean colour of a frame in whole numbers, (3,) uint8."""
    colour: Frame = mean_colour(frame).round().astype(np.uint8)
    return colour
