"""The report of a run: tables for people, one JSON file for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.chaos.kinds import Fault
from tests.chaos.services import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from tests.chaos.faults import Strike
    from tests.chaos.plan import Plan
    from tests.chaos.services import Exit
    from tests.chaos.verify import Finding
    from tests.chaos.watch import Named

POINT = "death at a fault point"
_EXAMPLES = 5
_MOST_NAMED = 4


@dataclass
class Report:
    """All that is known of a run in the end."""

    seed: int
    plan: Plan
    strikes: Sequence[Strike]
    exits: Sequence[Exit]
    said: Mapping[str, Counter[str]]
    """What the services logged, by role."""
    findings: Sequence[Finding]
    seen: Mapping[str, Counter[str]]
    """What a read_committed reader from outside sees come out, by kind of input."""
    named: Mapping[str, Named]
    """What services showed of the strikes of each kind."""
    counts: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each part of the run took."""

    def planned(self) -> Counter[str]:
        """Count the faults of each kind that were to strike."""
        kinds = Counter(str(step.fault) for step in self.plan.steps)
        kinds[POINT] = sum(bool(step.point) for step in self.plan.steps)
        return kinds

    def fired(self) -> Counter[str]:
        """Count the faults of each kind that were seen to strike."""
        kinds = Counter(str(strike.step.fault) for strike in self.strikes if strike.fired)
        kinds[POINT] = sum(bool(strike.point_fired) for strike in self.strikes)
        return kinds

    def unexpected(self) -> list[Exit]:
        """Return the ends of processes that we did not cause."""
        return [each for each in self.exits if each.cause is Cause.UNEXPECTED]

    @property
    def passed(self) -> bool:
        """Whether every fault struck and every guarantee was kept."""
        return self.planned() == self.fired() and all(finding.kept for finding in self.findings)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        document = {
            "seed": self.seed,
            "passed": self.passed,
            "protocols": self.plan.protocols,
            "seconds": self.seconds,
            "counts": self.counts,
            "seen": self.seen,
            "named": {kind: each.document() for kind, each in self.named.items()},
            "faults": {
                kind: {"planned": planned, "fired": self.fired()[kind]} for kind, planned in self.planned().items()
            },
            "guarantees": [asdict(finding) | {"kept": finding.kept} for finding in self.findings],
            "said": self.said,
            "exits": [asdict(each) for each in self.exits],
            "strikes": [asdict(strike) for strike in self.strikes],
        }
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Print the tables."""
        protocols = ", ".join(f"{role}: {protocol}" for role, protocol in self.plan.protocols.items())
        console.print(f"\nSeed {self.seed}; group protocols {protocols}")
        console.print(
            self._table("Faults", ("fault", "planned", "struck", "shown by", "after s", "unseen"), self._fault_rows())
        )
        console.print(
            self._table("What they caused, as the services logged it", ("event", *self.said), self._said_rows())
        )
        console.print(self._table("Ends of processes", ("process", "why", "code", "how often"), self._end_rows()))
        console.print(self._table("Counted", ("what", "how many"), self.counts.items()))
        console.print(self._table("Duration", ("part", "seconds"), ((k, f"{v:.0f}") for k, v in self.seconds.items())))
        for strike in self.strikes:
            if not strike.fired or strike.point_fired is False:
                console.print(f"[red]did not strike[/]: {strike}", highlight=False)
        for each in self.unexpected():
            console.print(f"[red]unexpected end[/]: {each.name} with {each.code} at {each.at}", highlight=False)
            console.print("\n".join(each.log_tail[-_EXAMPLES:]), markup=False, highlight=False)
        self._show_findings(console)
        kinds = ("once", "again, as told", "deleted unread", "lost", "doubled")
        rows = [(name, sum(seen.values()), *(seen[kind] for kind in kinds)) for name, seen in self.seen.items()]
        console.print(self._table("What a read_committed reader sees", ("inputs", "how many", *kinds), rows))

    def _show_findings(self, console: Console) -> None:
        table = Table(title="Guarantees", title_justify="left")
        for column in ("guarantee", "", "counted"):
            table.add_column(column)
        for finding in self.findings:
            table.add_row(finding.guarantee, "kept" if finding.kept else "[red]BROKEN[/]", finding.counted)
        console.print(table)
        for finding in self.findings:
            if finding.problems:
                console.print(f"[red]BROKEN[/] {finding.guarantee}: {len(finding.problems)}, such as", highlight=False)
                for problem in finding.problems[:_EXAMPLES]:
                    console.print(f"  {problem}", markup=False, highlight=False)

    def _fault_rows(self) -> list[tuple[Any, ...]]:
        fired = self.fired()
        order = [*Fault, POINT]
        rows = [
            (
                kind,
                planned,
                fired[kind],
                *self._shown(kind),
            )
            for kind, planned in sorted(self.planned().items(), key=lambda row: order.index(row[0]))
            if planned
        ]
        return [*rows, ("all", len(self.plan.steps), sum(strike.fired for strike in self.strikes), "", "", "")]

    def _shown(self, kind: str) -> tuple[str, str, str]:
        """Return what showed of a kind in most of its strikes, after how long at most, and of how many nothing did."""
        named = self.named.get(kind)
        if named is None:
            return "", "", ""
        names = ", ".join(f"{name} {count}" for name, count in named.names.most_common(_MOST_NAMED))
        return names, f"{max(named.after_s):.0f}" if named.after_s else "", str(named.unseen or "")

    def _said_rows(self) -> list[tuple[Any, ...]]:
        events = sorted({event for counter in self.said.values() for event in counter})
        return [(event, *(counter[event] for counter in self.said.values())) for event in events]

    def _end_rows(self) -> list[tuple[Any, ...]]:
        ends = Counter((each.name, str(each.cause), each.code) for each in self.exits)
        return [(*end, ends[end]) for end in sorted(ends)]

    @staticmethod
    def _table(title: str, columns: Sequence[str], rows: Any) -> Table:
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*map(str, row))
        return table
