"""Clicks on results, from a file or a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamer.evaluation.files import DAMAGED, opened
from streamer.evaluation.questions import ReplayError
from streamer.events import Id, Time

if TYPE_CHECKING:
    from pathlib import Path

MAX_CLICKS = 20_000_000
_MAX_LINE_BYTES = 65_536


class Click(msgspec.Struct, frozen=True):
    """One click on a result, as a JSON line or a record of a topic; unknown fields are ignored."""

    query_id: Id
    clip_id: Id
    clicked_at: Time
    session_id: Id | None = None


class Clicks:
    """The clicked clips by query, and the session of each query whose clicks name one."""

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = {}
        self.session_of: dict[str, str] = {}
        self.count = 0
        self._decoder = msgspec.json.Decoder(Click)

    def add(self, value: bytes, place: str) -> None:
        """Add one click. Raises :class:`ReplayError` if it is invalid."""
        try:
            click = self._decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            expected = "expected a click (query_id, clip_id, clicked_at with an offset)"
            raise ReplayError(f"{place}: {expected}, found {error}") from None
        self.count += 1
        if self.count > MAX_CLICKS:
            raise ReplayError(f"{place}: more than {MAX_CLICKS:,} clicks")
        self.of.setdefault(click.query_id, set()).add(click.clip_id)
        if click.session_id is not None:
            self.session_of.setdefault(click.query_id, click.session_id)

    def read(self, path: Path) -> None:
        """Add the clicks of a file, one per line."""
        try:
            with opened(path) as file:
                number = 0
                while line := file.readline(_MAX_LINE_BYTES):
                    number += 1
                    if line.strip():
                        self.add(line, f"{path}:{number}")
        except DAMAGED as error:
            raise ReplayError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
        except OSError as error:
            raise ReplayError(f"{path}: {error.strerror or error}") from error
