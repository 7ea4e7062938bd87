"""Generate the sections of the documentation that come from code and measurements; with --check, only compare."""

from __future__ import annotations

import argparse
import sys

from reference.pages import PAGES, ROOT
from reference.sections import rewritten


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is out of date")
    check = parser.parse_args().check
    for page, sections in PAGES.items():
        text = page.read_text(encoding="utf-8")
        wanted = rewritten(text, sections)
        if text == wanted:
            continue
        if check:
            sys.exit(f"{page.relative_to(ROOT)} is out of date; run: make docs")
        page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
