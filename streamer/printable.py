r"""Makes text from outside safe for terminals, logs and tables.

An id, a query or a broker's answer may hold escape sequences that rename a terminal's window or fill its clipboard,
line breaks that forge a log line or a row, and characters that reverse the order in which others are shown. All of them
are escaped as in JSON (``\u001b``), so that escaped JSON is still the same JSON.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is not seen as itself: control and format characters (bidirectional ones are formats),
surrogates, private and unassigned code points, separators of lines and paragraphs."""
_NOT_ASCII: Final = re.compile(r"[^ -~]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Escape everything that is not seen as itself; with ``lines``, all but line breaks (``\n``) and tabs.

    Takes time in proportion to the text.
    """
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(_escaped_in_lines if lines else _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    return json.dumps(char)[1:-1] if unicodedata.category(char) in _HIDDEN else char


def _escaped_in_lines(found: re.Match[str]) -> str:
    return found[0] if found[0] in "\n\t" else _escaped(found)
