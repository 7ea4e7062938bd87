"""The encoder protocol: what a loaded model can do."""

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
"""Of a model: what a service may want of it."""


class EncoderError(Exception):
    """The model cannot be used: unknown name or tag, missing or unfit weights, vectors that are not finite.

    The message is one line and names what; ``setting`` is the setting to blame.
    """

    def __init__(self, message: str, *, setting: Literal["model", "pretrained", "dtype", "device"] = "model") -> None:
        super().__init__(message)
        self.setting = setting


class Encoder(Protocol):
    """A loaded model.

    What ``prepare`` returns may be called from several threads at once, the rest from one at a time each. The
    encoding methods take at least one item and raise :class:`EncoderError` where a vector is not finite.
    """

    @property
    def model_id(self) -> str:
        """Derived from architecture, weights and preprocessing; not from dtype, device or path."""
        ...

    @property
    def computes_in(self) -> str:
        """The arithmetic in use, such as ``bfloat16, packed``."""
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
        """How many vectors :meth:`encode_images` gives for a frame: 1 for CLIP."""
        ...

    @property
    def image_batch(self) -> int:
        """How many frames a call of :meth:`encode_images` are worth taking here; more gain little."""
        ...

    @property
    def prepare(self) -> Callable[[Frame], Prepared]:
        """What applies the model's own preprocessing to one frame.

        It can be pickled, and does not import the model's library, so that it runs where clips are decoded; what
        it gives says its size in bytes as ``nbytes``.
        """
        ...

    def encode_images(self, prepared: Sequence[Prepared]) -> npt.NDArray[np.float32]:
        """Encode frames in one batch: (n, vectors_per_frame, dim), L2-normalised."""
        ...

    def encode_texts(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries in one batch: (n, dim), L2-normalised. Not cached here."""
        ...

    def warm_up(self) -> None:
        """Run each side that was loaded once, so that the first event does not pay for it."""
        ...
