"""One, two and four rerankers on one backlog: events per second, and what they cost.

    python bench/scaling.py

What must hold when processes are added is their own cost: events per second of the rerankers' processor time. How
many more events per second come out depends on the cores that are left, of which the broker takes its share; on two
cores two processes and a broker are one more than fits.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psutil

from bench.contestants import Contestant, Drain, check_answers
from bench.report import print_figures, spread
from bench.workload import place

NAME = "scaling"
PROCESSES = (1, 2, 4)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, seconds = (1, 0.5) if quick else (3, 3.0)
    drains: dict[int, list[Drain]] = {count: [] for count in PROCESSES}
    with place(quick=quick) as where, ExitStack() as stack:
        groups = {}
        for count in PROCESSES:
            group = stack.enter_context(Contestant.service(where, where.bus(f"of{count}"), count))
            groups[count] = group.warm_up(where, seconds=seconds)
        for _ in range(rounds):
            for count, group in groups.items():
                drains[count].append(group.drain(where))
        for group in groups.values():
            check_answers(group)
    figures: dict[str, Any] = {"cores": psutil.cpu_count()}
    for count in PROCESSES:
        figures[f"events_per_s_of_{count}"] = spread(each.events_per_second for each in drains[count])
        figures[f"events_per_cpu_s_of_{count}"] = spread(each.events_per_cpu_second for each in drains[count])
        figures[f"cores_busy_of_{count}"] = spread(each.cores for each in drains[count])
        figures[f"broker_cores_busy_of_{count}"] = spread(each.broker_cores for each in drains[count])
    for count in PROCESSES[1:]:
        figures[f"cpu_efficiency_of_{count}"] = spread(
            several.events_per_cpu_second / one.events_per_cpu_second
            for one, several in zip(drains[1], drains[count], strict=True)
        )
    return figures


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
