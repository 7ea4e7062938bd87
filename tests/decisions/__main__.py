"""``make decide``: simulates pilots and sweeps with known truths, and fails where one decides wrongly too often."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tests.decisions import pilots, sweeps, world

if TYPE_CHECKING:
    from tests.decisions.sweeps import Scenario


def _sweeps(scenario: Scenario, runs: int, topics: int) -> list[sweeps.Outcome]:
    of = sweeps.population(scenario, topics=topics)
    return [sweeps.simulate(scenario, of, topics=each, runs=runs) for each in sweeps.TOPICS]


def main() -> int:
    """Simulate, print both tables and what is wrong; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.decisions", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="seeded runs of each case")
    parser.add_argument("--clips", type=int, default=400, help="clips of the synthetic benchmark")
    parser.add_argument("--topics", type=int, default=100, help="topics of the synthetic benchmark")
    parser.add_argument("--population", type=int, default=2_000, help="topics from which sweeps draw theirs")
    given = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        swept = [pool.submit(_sweeps, each, given.runs, given.population) for each in sweeps.SCENARIOS]
        engines = world.build(clips=given.clips, topics=given.topics, seed=11)
        simulated = [
            pool.submit(pilots.simulate, engine, kind, runs=given.runs) for kind in pilots.KINDS for engine in engines
        ]
        of_pilots = [outcome for each in simulated for outcome in each.result()]
        of_sweeps = [outcome for each in swept for outcome in each.result()]
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in pilots.sure(of_pilots).items())
    problems = [problem for each in of_pilots for problem in each.problems]
    problems += [problem for each in of_sweeps for problem in each.problems]
    parts = [
        "\n".join(map(str, engines)),
        pilots.table(of_pilots),
        sweeps.table(of_sweeps),
        f"pilots with the right verdict: {shares}; {time.monotonic() - began:.0f} s",
        "\n".join(problems) or "all claims hold",
    ]
    sys.stdout.write("\n\n".join(parts) + "\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
