"""Text that wants more of a terminal or a log than to be read."""

from __future__ import annotations

import random
import sys
import threading
import unicodedata
from typing import TYPE_CHECKING

from streamer import cli

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

FORGED = "2026-11-24 [error] forged line"
_SEQUENCES = (
    "\x1b]0;title\x07", "\x1b]52;c;cm0gLXJmIC8=\x07", "\x1b[2J\x1b[H", "\x1b[31m", "\x1b[1A\x1b[2K",
    "\x1bP+q544e\x1b\\", "\x1b]8;;https://example.com\x1b\\here\x1b]8;;\x1b\\", "\x1bc", "\x1b[6n", "\x1b[?1049h",
    "\x9b31m", "\x9d0;t\x9c", "\x90q\x9c", "\x85", "\x08\x08\x08", "\r", "\x0b", "\x0c", "\x7f",
    "\x00", "\x07", "\x0e", "\x0f",
    "\u202e", "\u202d", "\u2066", "\u2067", "\u2068", "\u2069", "\u200e", "\u200f", "\u061c",
    "\u202a", "\u202b", "\u202c",
    "\u2028", "\u2029", "\ufeff", "\u200b", "\u200d", "\u2060", "\u00ad", "\U000e0041", "\ue000", "\U0010ffff",
    "[bold red]", "[link=https://example.com]", "[/]", "[", ":smile:", "\\", "%s", "{x}",
    f"\n{FORGED}", f"\r\n{FORGED}", f"\u2028{FORGED}",
)  # fmt: skip
_WORDS = ("red bicycle", "赤い自転車", "vélo", "c1", "\u3000", "😀", "a=b", '"quoted"')


def hostile(count: int, *, surrogates: bool = True, seed: int = 16) -> list[str]:
    """Return so many different texts; ``surrogates``: half ones too, which no encoding has."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    controls = [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))]
    parts = [*_SEQUENCES, *_SEQUENCES, *_WORDS, *(["\ud800", "\udc80"] if surrogates else [])]
    found: dict[str, None] = dict.fromkeys(parts[: len(_SEQUENCES)])
    while len(found) < count:
        found["".join(rng.choices(parts, k=rng.randint(1, 4))) + rng.choice(controls)] = None
    return list(found)[:count]


def raw(printed: str) -> set[str]:
    """Return what of a text a terminal could obey, or is not seen as itself; line breaks and tabs are left to lines."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return {repr(char) for char in printed if unicodedata.category(char) in hidden and char not in "\n\t"}


def forged(printed: str) -> list[str]:
    """Return the lines that text from outside has made on its own."""
    return [line for line in printed.split("\n") if line.startswith(FORGED)]


def main(arguments: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command as its process would, uncaught exceptions included."""
    patch.setattr(sys, "argv", ["streamer", *arguments])
    patch.setattr(sys, "excepthook", sys.excepthook)
    patch.setattr(threading, "excepthook", threading.excepthook)
    try:
        cli.main()
    except SystemExit:
        pass
    except Exception:  # noqa: BLE001 - shown as an interpreter shows it
        sys.excepthook(*sys.exc_info())
