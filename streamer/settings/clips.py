"""Settings of clips: how they are sampled, where they may be fetched from, and what they may take."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

import orjson
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from streamer.settings.base import Group
from streamer.settings.errors import invalid_setting

Precision = Literal["float32", "float16", "int8"]
Sandbox = Literal["require", "permissive"]


class SamplingSettings(Group):
    """Which frames of a clip are taken."""

    frame_interval: float = Field(0.5, gt=0, le=3600, description="Seconds between sampled frames")
    max_frames: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Largest number of frames of a clip; a longer clip is sampled every duration / max-frames",
    )


class EmbeddingSettings(SamplingSettings):
    """What of a clip goes into its record."""

    precision: Precision = Field("float16", description="Precision of stored vectors")


class SandboxSettings(Group):
    """How the processes that decode clips are confined."""

    decoder_sandbox: Sandbox = Field(
        "require",
        description="require: refuse to run where decoders get no filter of system calls (seccomp); "
        "permissive: run with what the kernel offers",
    )


class FetchSettings(SandboxSettings):
    """Where clips may be fetched from, how large they may be, and what fetching and decoding one may take."""

    allowed_uris: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="JSON list of the URI prefixes that uploads may be fetched from"
    )
    allowed_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="JSON list of networks (CIDR) that http(s) sources may be in besides public addresses",
    )
    max_clip_bytes: int = Field(1 << 30, ge=1, description="Largest file that is fetched, in bytes")
    download_bytes: int = Field(
        6 << 30,
        ge=1,
        description="Bytes of all downloads together, in the temporary folder (TMPDIR); while they are used up, "
        "further clips wait to be fetched",
    )
    fetch_timeout: float = Field(60.0, gt=0, description="Seconds for fetching one clip")
    first_byte_timeout: float = Field(
        15.0, gt=0, description="Seconds to wait for the first byte of a source, and for each further one"
    )
    max_clip_seconds: float = Field(12 * 3600, gt=0, description="Longest clip, in seconds")
    max_clip_pixels: int = Field(8192 * 4352, ge=1, description="Largest number of pixels of a frame")
    max_clip_packets: int = Field(2_000_000, ge=1, description="Largest number of encoded frames of a clip")
    decode_timeout: float = Field(120.0, gt=0, description="Seconds for decoding one clip")
    decode_memory: int = Field(
        2 << 30,
        ge=256 << 20,
        description="Bytes of address space that the process decoding a clip may use; there are at most twice "
        "decode-workers of them",
    )

    @field_validator("allowed_uris", "allowed_networks", mode="before")
    @classmethod
    def _parse_list(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, list):  # a TypeError would not be reported as a wrong setting
            raise ValueError(f"must be a JSON list, such as {_LISTS_IN_JSON[str(info.field_name)]}")
        return parsed

    @model_validator(mode="after")
    def _check_download_bytes(self) -> Self:
        if self.download_bytes < self.max_clip_bytes:
            raise ValueError(
                f"download_bytes: must be at least max_clip_bytes, which is {self.max_clip_bytes}, or the largest clip "
                "would wait for ever"
            )
        return self

    @field_validator("allowed_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    def named_uris(self) -> tuple[str, ...]:
        """Return the allowed prefixes; :class:`SettingsError` where none are named: any default would be too wide."""
        if self.allowed_uris is None:
            raise invalid_setting(
                "allowed_uris",
                "name the places that uploads may be fetched from, as a JSON list of URI prefixes, such as "
                f"--allowed-uris '{_LISTS_IN_JSON['allowed_uris']}'",
            )
        return self.allowed_uris


class IntakeSettings(FetchSettings):
    """What taking in many clips may take, besides what one may."""

    max_clock_skew: float = Field(
        3600.0,
        ge=0,
        le=100 * 365 * 86_400,
        description="Seconds by which an upload's uploaded_at may be after the time of its record; a later one is "
        "dead-lettered",
    )
    fetch_retry_timeout: float = Field(
        120.0, ge=0, description="Seconds for which fetching a clip is retried after transient faults of its source"
    )
    duplicate_threshold: float = Field(
        0,
        ge=0,
        le=255,
        description="Largest mean difference (0 to 255) of any block of 16 x 16 pixels between frames that count as "
        "the same and are encoded once; 0: off",
    )
    decode_workers: int = Field(
        2,
        ge=1,
        le=256,
        description="Clips decoded at the same time; 24 more may wait to be fetched, 8 of them from one source",
    )
    image_batch: int | None = Field(
        None, ge=1, le=4096, description="Largest number of frames in one call of the image encoder"
    )


_LISTS_IN_JSON = {
    "allowed_uris": '["file:/clips", "https://cdn.example.com/"]',
    "allowed_networks": '["10.0.0.0/8", "fd00::/8"]',
}
