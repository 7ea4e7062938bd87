"""Generated sections of a page, each between two comments; the rest of the page is not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

END = "<!-- end -->"


def rewritten(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with the contents of each named section as its function returns it.

    Raises ValueError if the page does not have a section exactly once.
    """
    for name, write in sections.items():
        start = f"<!-- {name}: written by scripts/write_docs.py -->"
        before, rest = text.split(start)
        after = rest.split(END, 1)[1]
        text = f"{before}{start}\n{write().strip()}\n{END}{after}"
    return text


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; a vertical bar in a cell is escaped."""
    columns = list(head)
    cells = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
