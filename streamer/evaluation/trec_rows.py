"""Rows of text files with limits on everything, and errors that say the file, the line, what was expected and found."""

from __future__ import annotations

import contextlib
import re
from typing import IO, TYPE_CHECKING, NoReturn

from streamer.evaluation import files
from streamer.events import MAX_ID_BYTES, MAX_QUERY_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MAX_ROWS = 25_000_000
"""Most lines of a file: the 15,000 captions of VATEX with all its 1,500 videos each."""
MAX_LINE_BYTES = 16_384
_SHOWN_BYTES = 80
"""The length to which an error message cuts found text."""
_BLANK = re.compile(r"[ \t-\r\0]")
_FIND_SHOTS = re.compile(r"find shots of\s+", re.IGNORECASE)
COMMENT = "#"


class TrecError(Exception):
    """An invalid file; the message is one line."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as :func:`streamer.evaluation.files.opened` does; raises :class:`TrecError`."""
    try:
        with files.opened(path) as file:
            yield file
    except files.DAMAGED as error:
        raise TrecError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise TrecError(f"{path}: {error.strerror or error}") from error


def limited_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each line; raises :class:`TrecError` beyond the limits of lines and their bytes."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number > MAX_ROWS:
            refuse(path, number, f"at most {MAX_ROWS:,} lines", "more")
        if len(raw) > MAX_LINE_BYTES:
            refuse(path, number, f"a line of at most {MAX_LINE_BYTES:,} bytes", "a longer one")
        yield number, raw


def lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and text of each line that is neither empty nor a comment."""
    for number, text in limited_lines(path, file):
        if (stripped := text.strip()) and not stripped.startswith(COMMENT.encode()):
            yield number, stripped


def rows(
    path: Path, found: Iterable[tuple[int, bytes]], columns: Sequence[str], *, last_is_text: bool = False
) -> Iterator[tuple[int, list[bytes]]]:
    """Split each of the :func:`lines` into its fields; with ``last_is_text`` the last field takes the rest."""
    most_splits = len(columns) - 1 if last_is_text else -1
    empty = True
    for number, text in found:
        empty = False
        fields = text.split(None, most_splits)
        if len(fields) != len(columns):
            expected = f"{len(columns)} columns ({' '.join(columns)})"
            refuse(path, number, expected, f"{len(fields)}: {_shown(text)}")
        yield number, fields
    if empty:
        raise TrecError(f"{path}: expected lines of {' '.join(columns)}, found an empty file")


class Names:
    """The identifiers of one file, each checked and decoded once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[bytes, str] = {}

    def of(self, line: int, raw: bytes) -> str:
        """Return the name that a field holds; raises :class:`TrecError`."""
        name = self._known.get(raw)
        if name is None:
            if len(raw) > MAX_ID_BYTES:
                refuse(self._path, line, f"an id of at most {MAX_ID_BYTES} bytes", raw)
            name = self._known[raw] = decoded(self._path, line, raw)
            if "\0" in name:
                refuse(self._path, line, "text", raw)
        return name


def query(path: Path, line: int | None, text: str) -> str:
    """Return a query's text as it is asked: NIST's "Find shots of" is for people, not for a model."""
    text = " ".join(text.split())
    if found := _FIND_SHOTS.match(text):
        text = text[found.end() :]
    if not text or len(text) > MAX_QUERY_CHARS:
        refuse(path, line, f"a query of 1 to {MAX_QUERY_CHARS:,} characters", f"{len(text):,}")
    return text


def decoded(path: Path, line: int, raw: bytes) -> str:
    """Decode UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        refuse(path, line, "UTF-8", raw[max(0, error.start - 20) :])


def _shown(found: bytes) -> str:
    return repr(found[:_SHOWN_BYTES])[1:] + ("..." if len(found) > _SHOWN_BYTES else "")


def refuse(path: Path, line: int | None, expected: str, found: bytes | str) -> NoReturn:
    """Raise :class:`TrecError`."""
    where = str(path) if line is None else f"{path}:{line}"
    raise TrecError(
        f"{where}: expected {expected}, found {found if isinstance(found, str) else _shown(found)}"
    ) from None


def word(path: Path, name: str, *, is_first: bool = False) -> str:
    """Return a name that can be written as a field, and as the first one; raises :class:`TrecError`."""
    if not name or _BLANK.search(name):
        raise TrecError(f"{path}: expected a name without white space to write, found {name!r}")
    if is_first and name.startswith(COMMENT):
        raise TrecError(f"{path}: expected a name that does not begin with {COMMENT} to write, found {name!r}")
    return name


def write(path: Path, text: Iterable[str]) -> None:
    """Write lines; an older file stays until they are all written. Raises :class:`TrecError`."""
    try:
        files.write_whole(path, (line.encode() for line in text))
    except OSError as error:
        raise TrecError(f"{path}: {error.strerror or error}") from error
