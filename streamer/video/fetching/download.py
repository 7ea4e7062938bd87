"""Shared by all downloads: a bounded sink, resumption, and the errors."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import TYPE_CHECKING

from streamer.events import Reason
from streamer.machine import Lack, MachineError, machine_error
from streamer.video.errors import ClipError, Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from streamer.video.fetching.downloads import Claim

_PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each resumption of a dropped transfer; after more drops, the transfer fails and is retried later."""
_DETAIL_CHARS = 200


class Sink(io.BufferedWriter):
    """The local file of a download: at most ``limit`` bytes, each of them in ``claim``.

    Raises :class:`ClipError` CLIP_TOO_LARGE for more than the limit, :class:`.NoRoomError` for more than the budget
    has, and :class:`MachineError` where the file cannot be written, whatever the reason: it is no error of the source.
    ``size``: bytes taken so far.
    """

    def __init__(self, path: Path, raw: io.FileIO, limit: int, claim: Claim) -> None:
        super().__init__(raw)
        self.path = path
        self._limit = limit
        self._claim = claim
        self.size = 0

    def announce(self, more: int) -> None:
        """Take the size that a source tells from the budget, or refuse it immediately."""
        if self.size + more > self._limit:
            raise too_large(self._limit, self.size + more)
        self._claim.reach(self.size + more)

    def write(self, chunk: ReadableBuffer, /) -> int:
        """Write a chunk, unless it exceeds the limit."""
        length = memoryview(chunk).nbytes
        if self.size + length > self._limit:
            raise too_large(self._limit)
        self._claim.grow(self.size + length)
        self.size += length
        with _ours():
            return super().write(chunk)

    def wrote(self, size: int) -> None:
        """Count the first ``size`` bytes of the file, which somebody else writes to ``path``."""
        if size > self._limit:
            raise too_large(self._limit)
        self._claim.grow(size)
        self.size = size

    def restart(self) -> None:
        """Discard all bytes."""
        with _ours():
            self.seek(0)
            self.truncate()
        self.size = 0


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Tell an error of the local file from one of the connection, which may be the same error."""
    try:
        yield
    except OSError as error:
        raise machine_error(error) or MachineError(Lack.DISK, f"downloads: {error.strerror or error}") from error


async def resuming(attempt: Callable[[], Awaitable[None]], sink: Sink, can_resume: Callable[[], bool]) -> None:
    """Run ``attempt``; repeat it after each drop that made progress, while ``can_resume``."""
    for pause in _PAUSES:
        had = sink.size
        try:
            await attempt()
        except ClipError as error:
            if error.retry is not Retry.FOR_A_WHILE or sink.size <= had or not can_resume():
                raise
        else:
            return
        await asyncio.sleep(pause)
    await attempt()


def too_large(limit: int, size: int | None = None) -> ClipError:
    """Return the error for a source of more than ``limit`` bytes."""
    found = "more" if size is None else f"{size} bytes"
    return ClipError(Reason.CLIP_TOO_LARGE, f"{found}, the limit is {limit} bytes")


def failed(detail: str, retry: Retry = Retry.FOR_A_WHILE) -> ClipError:
    """Return the error for a source that cannot be fetched; ``detail`` may quote the server."""
    words = " ".join(detail.split())
    return ClipError(
        Reason.FETCH_FAILED, "".join(char if char.isprintable() else "?" for char in words)[:_DETAIL_CHARS], retry
    )


UNREADABLE = (ValueError, OverflowError, LookupError)
"""What parsers of headers raise that expect no number of 5,000 digits and no zone of 20, whosever they are."""


def unreadable(error: Exception) -> ClipError:
    """Return the error for a response that a client cannot parse; its text may contain the request."""
    return failed(f"the response cannot be read: {type(error).__name__}", Retry.ONCE)


def no_room(error: OSError) -> ClipError:
    """Return the error for a temporary file that cannot be written, which is not the source's fault."""
    return failed(error.strerror or type(error).__name__)
