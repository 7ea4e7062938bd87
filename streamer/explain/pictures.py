"""The frame of a clip at a moment: fetched and decoded anew, by the rules and in the sandbox of the embedder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from streamer.machine import MachineError
from streamer.settings import invalid_setting
from streamer.video import ClipError, Sampling
from streamer.video.fetching.fetcher import Fetcher
from streamer.video.isolation.confinement import SandboxError
from streamer.video.isolation.pool import DecodePool
from streamer.video.thumbnails import jpeg_uri, picture, thumbnail

if TYPE_CHECKING:
    from streamer.settings import ExplainSettings

NO_PREFIX = "no place is named that clips may be fetched from (--allowed-uris)"


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as a small picture, ``width`` x ``height`` pixels, in a ``data:`` URI; or ``why`` there is none.

    ``moment_ms``: its time in the clip. ``origin``: where the clip was fetched from (scheme, host and port, or bucket),
    never the whole address, which may be signed.
    """

    uri: str | None = None
    moment_ms: int | None = None
    width: int = 0
    height: int = 0
    origin: str | None = None
    why: str | None = None


class Pictures:
    """Fetches clips and decodes their frames, one clip at a time; the decoder starts with the first one.

    Raises :class:`~streamer.settings.SettingsError` for prefixes that cannot be used, and where decoders cannot be
    confined as the settings require.
    """

    def __init__(self, settings: ExplainSettings) -> None:
        self._settings = settings
        self._opened = contextlib.ExitStack()
        self._decoder: DecodePool | None = None
        self._fetcher: Fetcher | None = None
        if settings.allowed_uris is not None:
            try:
                self._fetcher = Fetcher(
                    settings.allowed_uris,
                    allowed_networks=settings.allowed_networks,
                    max_bytes=settings.max_clip_bytes,
                    timeout=settings.fetch_timeout,
                    first_byte_timeout=settings.first_byte_timeout,
                    download_bytes=settings.download_bytes,
                )
            except ValueError as error:
                raise invalid_setting("allowed_uris", error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def at(self, uri: str, moment_ms: int) -> Frame:
        """Return the sampled frame at a moment, one attempt; what goes wrong with the clip is told in words."""
        if self._fetcher is None:
            return Frame(why=NO_PREFIX)
        origin = None
        try:
            origin = self._fetcher.origin(uri)
            with self._fetcher.fetch(uri) as path, self._decoding().sampled(path) as clip:
                times = clip.times_ms.tolist()
                if moment_ms not in times:
                    return Frame(origin=origin, why=_other_frames(moment_ms))
                flat = clip.frames[int(clip.frame_of[times.index(moment_ms)])]
                height, width, _ = picture(flat).shape
                return Frame(jpeg_uri(flat), moment_ms, width, height, origin)
        except ClipError as error:
            return Frame(origin=origin, why=f"{error.reason}: {error.detail}")
        except SandboxError as error:
            detail = f"{error.detail}; permissive accepts that"
            raise invalid_setting("decoder_sandbox", detail) from None
        except MachineError as error:
            return Frame(origin=origin, why=f"this machine is short of {error.lack}: {error.detail}")

    def _decoding(self) -> DecodePool:
        if self._decoder is None:
            settings = self._settings
            sampling = Sampling(
                settings.frame_interval,
                settings.max_frames,
                settings.max_clip_pixels,
                settings.max_clip_seconds,
                settings.max_clip_packets,
            )
            self._decoder = DecodePool(
                sampling,
                thumbnail,
                workers=1,
                timeout=settings.decode_timeout,
                memory=settings.decode_memory,
                sandbox=settings.decoder_sandbox,
            )
            self._opened.callback(self._decoder.close)
        return self._decoder


def _other_frames(moment_ms: int) -> str:
    return (
        f"the clip has no sampled frame at {moment_ms / 1000:g} s now: it was replaced, or it was embedded with "
        "another sampling (--frame-interval, --max-frames)"
    )
