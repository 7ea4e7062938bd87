"""Write the tables of settings and metrics in README.md from the code; with --check only compare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streamer.metrics import markdown as metrics_table
from streamer.settings import markdown as settings_table

README = Path(__file__).parent.parent / "README.md"
END = "<!-- end -->"


def rewritten(text: str) -> str:
    """Return the page with both tables as the code has them now."""
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
        start = f"<!-- {name}: written by scripts/write_docs.py -->"
        before, rest = text.split(start)
        after = rest.split(END, 1)[1]
        text = f"{before}{start}\n{table}{END}{after}"
    return text


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the page is not up to date")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    wanted = rewritten(text)
    if check and text != wanted:
        sys.exit("README.md is not up to date: make docs")
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
