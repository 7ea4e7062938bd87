"""From a URI to sampled frames; all that imports av and fsspec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.video.errors import ClipError, Retry
from streamer.video.sample import SampledClip, Sampling, sample

if TYPE_CHECKING:
    from streamer.video.fetch import Fetcher
    from streamer.video.pool import DecodePool

__all__ = ["ClipError", "DecodePool", "Fetcher", "Retry", "SampledClip", "Sampling", "sample"]


def __getattr__(name: str) -> Any:
    """Import what fetches and what starts processes when it is asked for: decoders' processes need neither."""
    if name == "Fetcher":
        from streamer.video.fetch import Fetcher  # noqa: PLC0415 - aiohttp, fsspec and botocore: 0.2 s and 20 MB

        return Fetcher
    if name == "DecodePool":
        from streamer.video.pool import DecodePool  # noqa: PLC0415

        return DecodePool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
