"""Write the tables of README.md from the code and from the benchmarks' results; with --check only compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.report import summary
from streamer.metrics import markdown as metrics_table
from streamer.settings import markdown as settings_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "bench" / "results.json"
"""What `make bench` wrote on the machine that the README speaks of."""
END = "<!-- end -->"


def rewritten(text: str) -> str:
    """Return the page with its tables as code and results have them now."""
    performance = summary(json.loads(RESULTS.read_bytes()))
    for name, table in (("settings", settings_table()), ("metrics", metrics_table()), ("performance", performance)):
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
