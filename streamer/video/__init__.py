"""From a URI to sampled frames; only this package imports av and fsspec."""

from __future__ import annotations

from streamer.video.errors import ClipError, Retry
from streamer.video.sampling.sample import SampledClip, Sampling, sample

__all__ = ["ClipError", "Retry", "SampledClip", "Sampling", "sample"]
