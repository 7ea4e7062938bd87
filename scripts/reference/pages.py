"""The generated sections of each page; each section is on exactly one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cases.alpha_and_hubs_tables import tables as alpha_and_hubs_tables
from bench.cases.capacity_tables import tables as capacity_tables
from bench.cases.match_tables import tables as match_tables
from bench.cases.method_tables import negation_tables
from bench.cases.method_tables import tables as method_tables
from bench.harness.report import summary
from reference import alerts, commands, dead_letters, event_fields, imports
from streamer.kafka.client.acls import markdown as privileges_tables
from streamer.metrics.catalogue import markdown as metrics_tables
from streamer.settings import markdown as settings_table
from streamer.synthetic.benchmark import markdown as benchmark_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BENCHMARK = DOCS / "avs" / "results.json"
"""The output of `make avs`."""
RESULTS = DOCS / "bench" / "results.json"
"""The output of `make bench` on the machine described by the performance page."""


def _benchmark() -> str:
    return benchmark_table(json.loads(BENCHMARK.read_bytes()))


def _performance() -> str:
    return summary(json.loads(RESULTS.read_bytes()))


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    DOCS / "design.md": {"imports": imports.markdown},
    DOCS / "reference" / "settings.md": {"settings": settings_table},
    DOCS / "reference" / "commands.md": {"commands": commands.markdown},
    DOCS / "reference" / "events.md": {"fields": event_fields.markdown},
    DOCS / "reference" / "dead-letters.md": {"reasons": dead_letters.markdown},
    DOCS / "reference" / "metrics.md": {"metrics": metrics_tables},
    DOCS / "reference" / "alerts.md": {"alerts": alerts.markdown},
    DOCS / "reference" / "privileges.md": {"privileges": privileges_tables},
    DOCS / "performance.md": {"performance": _performance},
    DOCS / "evaluation.md": {
        "benchmark": _benchmark,
        **method_tables(DOCS / "bench" / "method.json"),
        **alpha_and_hubs_tables(DOCS / "bench" / "alpha-and-hubs.json"),
        **negation_tables(DOCS / "bench" / "negation.json"),
    },
    DOCS / "match.md": match_tables(DOCS / "bench" / "match.json"),
    DOCS / "capacity.md": capacity_tables(DOCS / "bench" / "capacity.json"),
}
"""The sections of each page, by the names in their comments."""
