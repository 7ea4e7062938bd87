"""Why a clip could not be had: one exception, with its dead-letter code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.events import Reason


class ClipError(Exception):
    """A clip that cannot be fetched or decoded.

    ``reason`` is its dead-letter code, ``detail`` one line for people; neither repeats the URI, whose query
    may be signed. ``transient``: the same clip may well succeed a little later.
    """

    def __init__(self, reason: Reason, detail: str, transient: bool = False) -> None:
        # All three go to Exception.args, so that the error can be pickled across processes.
        super().__init__(reason, detail, transient)
        self.reason = reason
        self.detail = detail
        self.transient = transient

    def __str__(self) -> str:
        return self.detail
