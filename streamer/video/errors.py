"""Why a clip could not be had: one exception, with its dead-letter code."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.events import Reason


class Retry(Enum):
    """Whether the same clip may succeed when it is tried again."""

    NEVER = auto()
    """It lies in the clip: trying again gives the same."""
    ONCE = auto()
    """It may have been chance: a decoder that crashed or ran out of time on a busy machine."""
    FOR_A_WHILE = auto()
    """It lies in the source, which may recover."""


class ClipError(Exception):
    """A clip that cannot be fetched or decoded.

    ``reason`` is its dead-letter code, ``detail`` one line for people; neither repeats the URI, whose query
    may be signed. ``retry``: whether the same clip may well succeed a little later.
    """

    def __init__(self, reason: Reason, detail: str, retry: Retry = Retry.NEVER) -> None:
        # All three go to Exception.args, so that the error can be pickled across processes.
        super().__init__(reason, detail, retry)
        self.reason = reason
        self.detail = detail
        self.retry = retry

    def __str__(self) -> str:
        return self.detail
