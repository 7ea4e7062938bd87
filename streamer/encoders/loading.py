"""The choice of an encoder by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.encoders.openmp import spin_briefly
from streamer.encoders.protocol import SIDES, Encoder, Side

if TYPE_CHECKING:
    from collections.abc import Collection

    from streamer.settings import Device, Dtype


def load_encoder(
    model: str,
    pretrained: str | None = None,
    *,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: int | None = None,
    sides: Collection[Side] = SIDES,
) -> Encoder:
    """Load what ``open_clip.create_model_and_transforms(model, pretrained)`` takes, as :class:`Encoder`, warm.

    How each of ``sides`` is computed fastest is measured here and logged; what needs another side raises
    RuntimeError, and that side's weights take no memory. ``dtype="auto"`` takes float32, or the reduced arithmetic
    whose vectors keep a cosine of 0.9998 to float32's where that is clearly faster. ``threads`` are those of the
    whole process's arithmetic on a CPU: None leaves it to OMP_NUM_THREADS, or to a measurement where that is not set.

    Raises :class:`EncoderError`.
    """
    spin_briefly()
    from streamer.encoders.open_clip import OpenClipEncoder  # noqa: PLC0415 - torch takes seconds to import

    return OpenClipEncoder.load(model, pretrained, dtype=dtype, device=device, threads=threads, sides=sides)
