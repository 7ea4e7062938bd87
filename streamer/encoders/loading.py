"""Loads an encoder by its model's name: the table of encoder families by scheme."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streamer.encoders.openmp import spin_briefly
from streamer.encoders.protocol import SIDES, Encoder, EncoderError, Side
from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streamer.settings import Device, Dtype, ModelSettings

DEMO = "demo"
"""The name of the small model that this project trained on rendered clips, for demos and tests."""
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "model"


class Options(NamedTuple):
    """Options of computing a model; :func:`load_encoder` explains each."""

    dtype: Dtype = "auto"
    device: Device = "auto"
    threads: int | None = None
    sides: Collection[Side] = SIDES


class Loader(Protocol):
    """Loads a model of one family."""

    def __call__(self, name: str, pretrained: str | None, options: Options) -> Encoder:
        """Load the model ``name``, given without its scheme. Raises :class:`EncoderError`."""
        ...


def _open_clip(name: str, pretrained: str | None, options: Options) -> Encoder:
    from streamer.encoders.open_clip import OpenClipEncoder  # noqa: PLC0415 - torch takes seconds to import

    return OpenClipEncoder.load(name, pretrained, **options._asdict())


def _demo(name: str, pretrained: str | None, options: Options) -> Encoder:
    if name:
        raise EncoderError(f"{DEMO} is a complete model name; nothing may follow it")
    return _open_clip(f"local-dir:{DEMO_FOLDER}", pretrained, options)


DEFAULT_SCHEME = "open_clip"
LOADERS: Mapping[str, Loader] = {DEFAULT_SCHEME: _open_clip, DEMO: _demo}
"""The families of encoders, by scheme."""
_OPEN_CLIP_SCHEMES = ("local-dir", "hf-hub")
"""The schemes that open_clip itself accepts."""


def loader_of(model: str) -> tuple[Loader, str]:
    """Return the loader of a model and the model's name for it. Raises :class:`EncoderError` for an unknown scheme."""
    scheme, colon, name = model.partition(":")
    if scheme in LOADERS and (colon or scheme != DEFAULT_SCHEME):
        return LOADERS[scheme], name
    if colon and scheme not in _OPEN_CLIP_SCHEMES:
        supported = ", ".join((*LOADERS, *_OPEN_CLIP_SCHEMES))
        raise EncoderError(f"unsupported model scheme {scheme!r}; supported: {supported}")
    return LOADERS[DEFAULT_SCHEME], model


def load_encoder(
    model: str,
    pretrained: str | None = None,
    *,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: int | None = None,
    sides: Collection[Side] = SIDES,
) -> Encoder:
    """Load a model as :class:`Encoder`, warm.

    ``model`` is ``scheme:name`` with a scheme of :data:`LOADERS`. Without a scheme, model and ``pretrained`` are what
    ``open_clip.create_model_and_transforms`` takes; ``demo`` is the small demonstration model.

    The fastest way of computing each of ``sides`` is measured here and logged. Methods that need another side raise
    RuntimeError, and that side's weights take no memory. ``dtype="auto"`` selects float32, or a reduced precision whose
    vectors have a cosine of at least 0.9998 to float32's if that is clearly faster. ``threads``: CPU threads for
    inference in the whole process; None means OMP_NUM_THREADS, or a measurement if that is not set.

    Raises :class:`EncoderError`.
    """
    load, name = loader_of(model)
    spin_briefly()
    return load(name, pretrained, Options(dtype, device, threads, sides))


def load_model(settings: ModelSettings, *, sides: Collection[Side] = SIDES) -> Encoder:
    """Load the configured model by :func:`load_encoder`.

    Raises :class:`~streamer.settings.SettingsError`, also if no model is configured.
    """
    model = settings.named_model()
    try:
        return load_encoder(
            model,
            settings.pretrained,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
            sides=sides,
        )
    except EncoderError as error:
        raise invalid_setting(error.setting, error) from None
