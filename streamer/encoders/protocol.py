"""The encoder protocol: the interface of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from streamer.preprocessing import Frame

Prepared = Any
"""One frame after the model's preprocessing; opaque outside the encoder that made it."""


Side = Literal["images", "texts"]
SIDES: tuple[Side, ...] = ("images", "texts")
"""The sides of a model that a service can load."""


class EncoderError(Exception):
    """The model cannot be used: unknown name or tag, missing or unfit weights, vectors that are not finite.

    The message is one line and names the problem; ``setting`` is the invalid setting.
    """

    def __init__(self, message: str, *, setting: Literal["model", "pretrained", "dtype", "device"] = "model") -> None:
        super().__init__(message)
        self.setting = setting


class Encoder(Protocol):
    """A loaded model.

    The callable that ``prepare`` returns may be called by several threads at once, every other method by one thread at
    a time. The encoding methods take at least one item. They raise :class:`EncoderError` if a vector is not finite, and
    MemoryError if the machine or the device has no memory left, which says nothing about the frames or queries.
    """

    @property
    def model_id(self) -> str:
        """Derived from architecture, weights and preprocessing; not from dtype, device or path."""
        ...

    @property
    def computes_in(self) -> str:
        """The precision in use, such as ``bfloat16, packed``."""
        ...

    @property
    def computes_on(self) -> str:
        """The kind of device: cpu or cuda."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def vectors_per_frame(self) -> int:
        """The number of vectors that :meth:`encode_images` returns per frame: 1 for CLIP."""
        ...

    @property
    def image_batch(self) -> int:
        """The best number of frames per call of :meth:`encode_images` on this device; more gain little."""
        ...

    @property
    def prepare(self) -> Callable[[Frame], Prepared]:
        """The callable that applies the model's preprocessing to one frame.

        It can be pickled and does not import the model's library, so that it runs in decoder processes; its result has
        its size in bytes as ``nbytes``.
        """
        ...

    def encode_images(self, prepared: Sequence[Prepared]) -> npt.NDArray[np.float32]:
        """Encode frames in one batch: (n, vectors_per_frame, dim), L2-normalised."""
        ...

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries in one batch: (n, dim), L2-normalised. Not cached here."""
        ...

    def warm_up(self) -> None:
        """Run each loaded side once, in the thread that will encode, so that the first event is not delayed.

        GNU's OpenMP keeps a pool of threads for each thread that calls it, and ends the process where it cannot start
        one. Afterwards the caller's pool is complete, and encoding in this thread starts no thread.

        Raises :class:`~streamer.machine.MachineError` if this machine lacks the threads.
        """
        ...
