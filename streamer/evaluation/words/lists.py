"""Lists of pairs of queries that differ in one word, as TOML; a small one is part of the package.

[[pairs]]
kind = "employment"
first = "a man who works as a nurse"
second = "a woman who works as a nurse"
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

STARTER = "starter"
"""The name of the list that is part of the package; its kinds follow the So-B-IT taxonomy, its queries are ours."""
MAX_PAIRS = 500
_STARTER = Path(__file__).with_name("starter.toml")
_MAX_BYTES = 256 * 1024
_MAX_TEXT, _MAX_KIND = 200, 40


class WordListError(Exception):
    """A list that cannot be used; the message is one line and names the file."""


class WordPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two queries that differ in one word, and the kind of what they are about."""

    kind: str
    first: str
    second: str

    @property
    def words(self) -> tuple[str, str]:
        """The words in which they differ."""
        one, other = self.first.split(), self.second.split()
        return next((a, b) for a, b in zip(one, other, strict=True) if a.casefold() != b.casefold())


class _File(msgspec.Struct, forbid_unknown_fields=True):
    pairs: list[WordPair]


def read_pairs(name: str) -> list[WordPair]:
    """Read the list with this path, or :data:`STARTER`. Raises :class:`WordListError`."""
    path = _STARTER if name == STARTER else Path(name)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WordListError(f"{name}: {error.strerror or error}") from None
    if len(raw) > _MAX_BYTES:
        raise WordListError(f"{name}: expected at most {_MAX_BYTES:,} bytes")
    try:
        found = msgspec.convert(tomllib.loads(raw.decode("utf-8")), _File).pairs
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WordListError(f"{name}: expected TOML in UTF-8, found an error: {error}") from None
    except RecursionError:
        raise WordListError(f"{name}: expected [[pairs]], found values that are nested too deeply") from None
    except msgspec.ValidationError as error:
        raise WordListError(f"{name}: expected [[pairs]] with kind, first and second: {error}") from None
    if not 1 <= len(found) <= MAX_PAIRS:
        raise WordListError(f"{name}: expected 1 to {MAX_PAIRS} pairs, found {len(found):,}")
    seen: set[frozenset[str]] = set()
    for number, pair in enumerate(found, start=1):
        if why := _fault(pair):
            raise WordListError(f"{name}: pair {number}: {why}")
        both = frozenset(_words(text) for text in (pair.first, pair.second))
        if both in seen:
            raise WordListError(f"{name}: pair {number}: expected each pair once, found {pair.first!r} again")
        seen.add(both)
    return found


def _fault(pair: WordPair) -> str | None:
    """Say what is wrong with a pair."""
    for name, most in (("kind", _MAX_KIND), ("first", _MAX_TEXT), ("second", _MAX_TEXT)):
        text: str = getattr(pair, name)
        if not text.strip() or len(text) > most:
            return f"{name}: expected 1 to {most} characters, found {len(text):,}"
        if not text.isprintable():
            return f"{name}: expected printable text in one line, found {text!r}"
    one, other = _words(pair.first).split(), _words(pair.second).split()
    if len(one) != len(other):
        return f"expected queries of equally many words, found {len(one)} and {len(other)}"
    differing = sum(a != b for a, b in zip(one, other, strict=True))
    if differing != 1:
        return f"expected queries that differ in one word, found {differing} that differ"
    return None


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()
