"""From a URI to sampled frames; all that imports av and fsspec."""

from streamer.video.errors import ClipError
from streamer.video.fetch import Fetcher
from streamer.video.sample import SampledClip, sample

__all__ = ["ClipError", "Fetcher", "SampledClip", "sample"]
