"""Models that encode frames and queries as vectors of one space; only this package imports torch and open_clip."""

from __future__ import annotations

from streamer.encoders.loading import DEMO, load_encoder, load_model
from streamer.encoders.protocol import SIDES, Encoder, EncoderError, Prepared, Side

__all__ = ["DEMO", "SIDES", "Encoder", "EncoderError", "Prepared", "Side", "load_encoder", "load_model"]
