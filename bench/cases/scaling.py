"""Throughput and CPU time of one, two and four rerankers with a backlog.

    python bench/cases/scaling.py

The target is about efficiency: events per second of the rerankers' CPU time must not drop much when processes are
added. The events per wall-clock second depend on the number of cores, of which the broker uses some; on two cores, two
rerankers and a broker already compete.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psutil

from bench.harness.contestants import Contestant, Drain, check_answers
from bench.harness.report import print_figures, spread
from bench.harness.workload import set_up

NAME = "scaling"
PROCESSES = (1, 2, 4)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, seconds = (1, 0.5) if quick else (3, 3.0)
    drains: dict[int, list[Drain]] = {count: [] for count in PROCESSES}
    with set_up(quick=quick) as setup, ExitStack() as stack:
        groups = {}
        for count in PROCESSES:
            group = stack.enter_context(Contestant.service(setup, setup.bus(f"of{count}"), count))
            groups[count] = group.warm_up(setup, seconds=seconds)
        for _ in range(rounds):
            for count, group in groups.items():
                drains[count].append(group.drain(setup))
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
