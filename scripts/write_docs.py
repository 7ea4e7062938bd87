"""Write the sections of the documentation that come from code and measured results; with --check only compare."""

from __future__ import annotations

import argparse
import sys

<<<<<<< HEAD
from bench.capacity_tables import tables as capacity_tables
from bench.report import summary
from streamer.kafka.client.acls import markdown as privileges_tables
from streamer.metrics import markdown as metrics_table
from streamer.settings import markdown as settings_table
from streamer.synthetic.benchmark import markdown as benchmark_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "docs" / "avs" / "results.json"
"""What `make avs` wrote."""
RESULTS = ROOT / "docs" / "bench" / "results.json"
"""What `make bench` wrote on the machine that the README speaks of."""
TABLES = {
    ROOT / "README.md": {
        "settings": settings_table,
        "performance": lambda: summary(json.loads(RESULTS.read_bytes())),
        "benchmark": lambda: benchmark_table(json.loads(BENCHMARK.read_bytes())),
    },
    ROOT / "docs" / "metrics.md": {"metrics": metrics_table},
    ROOT / "docs" / "security.md": {"privileges": privileges_tables},
    ROOT / "docs" / "evaluation.md": {"benchmark": lambda: benchmark_table(json.loads(BENCHMARK.read_bytes()))},
    ROOT / "docs" / "capacity.md": capacity_tables(ROOT / "docs" / "bench" / "capacity.json"),
}
"""The tables of each page, by the names that stand there."""
END = "<!-- end -->"


def rewritten(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with its tables as code and results have them now."""
    for name, table in tables.items():
        start = f"<!-- {name}: written by scripts/write_docs.py -->"
        before, rest = text.split(start)
        after = rest.split(END, 1)[1]
        text = f"{before}{start}\n{table()}{END}{after}"
    return text
=======
from reference.pages import PAGES, ROOT
from reference.sections import rewritten
>>>>>>> cc4044f (docs: a site of pages by task, and reference pages generated from the code)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where a page is not up to date")
    check = parser.parse_args().check
    for page, sections in PAGES.items():
        text = page.read_text(encoding="utf-8")
        wanted = rewritten(text, sections)
        if text == wanted:
            continue
        if check:
            sys.exit(f"{page.relative_to(ROOT)} is not up to date: make docs")
        page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
