"""Why a clip cannot be fetched or decoded: an error of the clip, with its dead-letter code."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.events import Reason


class Retry(Enum):
    """Whether another attempt at the same clip may succeed."""

    NEVER = auto()
    """The error is in the clip: another attempt fails too."""
    ONCE = auto()
    """The error may be temporary: a decoder that crashed or exceeded its time on a busy machine."""
    FOR_A_WHILE = auto()
    """The error is at the source, which may recover."""


class ClipError(Exception):
    """A clip that cannot be fetched or decoded.

    ``reason`` is its dead-letter code, ``detail`` one line for people; neither contains the URI, whose query may be
    signed. ``retry``: whether another attempt may succeed.
    """

    def __init__(self, reason: Reason, detail: str, retry: Retry = Retry.NEVER) -> None:
        # All three are in Exception.args, so that the error can be pickled.
        super().__init__(reason, detail, retry)
        self.reason = reason
        self.detail = detail
        self.retry = retry

    def __str__(self) -> str:
        return self.detail
