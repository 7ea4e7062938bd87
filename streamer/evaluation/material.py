"""What is measured with: the model's text side, and the store that the embedder filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.encoders import Encoder, EncoderError, load_encoder
from streamer.settings import blame
from streamer.store import StoreError, StoreOptions, StoreUnavailableError, open_existing

if TYPE_CHECKING:
    from streamer.settings import Settings
    from streamer.store import Store


def load_texts(settings: Settings) -> Encoder:
    """Load the text side of the settings' model; raises :class:`~streamer.settings.SettingsError`."""
    try:
        return load_encoder(
            settings.model,
            settings.pretrained,
            dtype=settings.dtype,
            device=settings.device,
            threads=settings.threads,
            sides=["texts"],
        )
    except EncoderError as error:
        raise blame(error.setting, error) from None


def open_vectors(settings: Settings, model_id: str) -> Store:
    """Open the settings' store to read a model's records; raises :class:`~streamer.settings.SettingsError`."""
    try:
        return open_existing(settings.store, model_id=model_id, options=StoreOptions.of(settings))
    except (StoreError, StoreUnavailableError) as error:
        raise blame("store", error) from None
