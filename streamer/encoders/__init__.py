"""Models that turn frames and queries into vectors of one space; all that imports torch and open_clip."""

from __future__ import annotations

from streamer.encoders.cache import QueryVectors
from streamer.encoders.protocol import Encoder, EncoderError, Prepared, load_encoder

__all__ = ["Encoder", "EncoderError", "Prepared", "QueryVectors", "load_encoder"]
