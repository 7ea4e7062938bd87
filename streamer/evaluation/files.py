"""Opens the files of evaluation: plain or gzipped, from a disk, a pipe or standard input, and writes them whole.

Text is UTF-8, unless a byte order mark or an XML declaration says otherwise.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import re
import sys
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STDIN = Path("-")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged gzip file raises."""
_GZIP = b"\x1f\x8b"
_UTF8_BOM = codecs.BOM_UTF8
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_PEEKED = 4_096


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file to read its bytes once, unzipped; ``-`` is standard input.

    What begins with a byte order mark of UTF-16 is read as UTF-8. Raises OSError and :data:`DAMAGED`, also while
    it is read.
    """
    with contextlib.ExitStack() as stack:
        raw = cast("io.BufferedReader", sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb")))
        if raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=raw))
            raw = io.BufferedReader(cast("io.RawIOBase", unzipped))
        if raw.peek(2)[:2] in _UTF16_BOMS:
            raw = io.BufferedReader(_Recoded(raw))
        if raw.peek(3)[:3] == _UTF8_BOM:
            raw.read(len(_UTF8_BOM))
        yield raw


class _Recoded(io.RawIOBase):
    """UTF-16 as UTF-8; what is not valid becomes bytes that UTF-8 does not allow."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self._left = b""
        self._is_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left and not self._is_ended:
            part = self._raw.read(_PEEKED)
            self._is_ended = not part
            try:
                self._left = self._decoder.decode(part, final=not part).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self._left, self._is_ended = b"\xff", True
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def decoded_xml(raw: bytes) -> str:
    """Decode XML by its declaration, which is removed.

    Raises UnicodeDecodeError, and LookupError for an encoding that is unknown or not of text.
    """
    found = _DECLARED.match(raw[:_PEEKED])
    name = found[1].decode("ascii") if found else "utf-8"
    # What opened() has recoded from UTF-16 still declares it.
    text = raw.decode("utf-8" if name.lower().startswith("utf-16") else name)
    return text.partition("?>")[2] if text.lstrip().startswith("<?xml") else text


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file, gzipped if its name ends in ``.gz``; an older one stays untouched until the new one is whole.

    A pipe or a device is written to as it is. Raises OSError.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as pipe:
            pipe.writelines(parts)
        return
    # A link stays one.
    target = path.resolve()
    is_zipped = path.suffix == ".gz"
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) if is_zipped else file as written:
            written.writelines(parts)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
