"""Encoders without a model: they keep the whole of the Encoder protocol, and what they give follows from the input."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.preprocessing import Frame


class FakeEncoder:
    """A frame's vector is the direction of its mean colour; a text's is the first axis. Tests override the rest."""

    model_id = "colour"
    computes_in = "float32"
    computes_on = "cpu"
    dim = 3
    vectors_per_frame = 1
    image_batch = 32

    @property
    def prepare(self) -> Callable[[Frame], Any]:
        """What reduces a frame to its mean colour, (3,) float64."""
        return mean_colour

    def encode_images(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return (n, 1, 3): the mean colours at length 1."""
        colours = np.stack(prepared).astype(np.float32)
        unit: npt.NDArray[np.float32] = colours / np.linalg.norm(colours, axis=1, keepdims=True)
        return unit[:, np.newaxis]

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, dim): the first axis for each."""
        return np.eye(self.dim, dtype=np.float32)[[0] * len(queries)]

    warmed_in: tuple[str, ...] = ()
    """The names of the threads in which it was warmed up."""

    def warm_up(self) -> None:
        """Note the thread."""
        self.warmed_in = (*self.warmed_in, threading.current_thread().name)


class AxisEncoder(FakeEncoder):
    """Encodes the query "axis N" as the N-th of ``dim`` unit vectors; raises ``poison`` for the query "poison"."""

    model_id = "axes"

    def __init__(self, dim: int, poison: Exception) -> None:
        self.dim = dim
        self.calls: list[list[str]] = []
        """The queries of each call."""
        self._poison = poison

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, dim). Raises what was given where a query is "poison"."""
        self.calls.append(list(queries))
        if "poison" in queries:
            raise self._poison
        return np.eye(self.dim, dtype=np.float32)[[int(query.split()[1]) for query in queries]]


def mean_colour(frame: Frame) -> Any:
    """Return the mean colour of a frame, (3,) float64."""
    return frame.reshape(-1, 3).mean(axis=0)


if TYPE_CHECKING:
    _keeps_the_protocol: Encoder = FakeEncoder()
