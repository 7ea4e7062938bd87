"""From a URI to sampled frames; all that imports av and fsspec."""

from streamer.video.errors import ClipError, Retry
from streamer.video.fetch import Fetcher
from streamer.video.pool import DecodePool
from streamer.video.sample import SampledClip, Sampling, sample

__all__ = ["ClipError", "DecodePool", "Fetcher", "Retry", "SampledClip", "Sampling", "sample"]
