"""Opens the embedder's store for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.settings import invalid_setting
from streamer.store import StoreError, StoreOptions, StoreUnavailableError, open_existing

if TYPE_CHECKING:
    from streamer.settings import StoreSettings
    from streamer.store import Store


def open_vectors(settings: StoreSettings, model_id: str) -> Store:
    """Open the settings' store to read a model's records; raises :class:`~streamer.settings.SettingsError`."""
    try:
        return open_existing(settings.store, model_id=model_id, options=StoreOptions.of(settings))
    except (StoreError, StoreUnavailableError) as error:
        raise invalid_setting("store", error) from None
