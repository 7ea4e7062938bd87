"""Events per second of one reranker with a backlog, compared with the cost of only transport and scoring.

    python bench/cases/reranking_throughput.py

The ideal throughput is 1 / (t_loop + t_core). t_loop is the time per event of a hand-written transactional loop that
reads no frames (``baseline.py``), on the same events. t_core is the time in which one process reads and scores the
frames of 100 candidates. All three take turns in one run. Query vectors are cached: the backlog has few distinct texts.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.contestants import Contestant, Drain, check_answers
from bench.harness.report import print_figures, spread
from bench.harness.workload import TEXTS, Setup, candidates, set_up

NAME = "reranking_throughput"
LOOP = str(Path(__file__).parents[1] / "harness" / "baseline.py")


def core_seconds(setup: Setup, queries: int) -> float:
    """Return the median seconds in which this process reads and scores one query's candidates."""
    vector = setup.encoder.encode_texts(TEXTS[:1])[0]
    store = setup.store()
    seconds = []
    try:
        for number in range(queries):
            ids = candidates(number, setup.clip_count)
            began = time.perf_counter()
            scores = store.score(ids, vector, None)
            seconds.append(time.perf_counter() - began)
            assert not np.isnan(scores.frame.cosines).any()
    finally:
        store.close()
    return statistics.median(seconds)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, seconds, core = (1, 0.5, 20) if quick else (4, 4.0, 400)
    ours: list[Drain] = []
    loops: list[Drain] = []
    cores: list[float] = []
    with set_up(quick=quick) as setup:
        one, other = setup.bus("ours"), setup.bus("loop")
        with (
            Contestant.script("loop", setup, other, [LOOP, "throughput"]) as loop,
            Contestant.service(setup, one) as service,
        ):
            loop.warm_up(setup, seconds=seconds)
            service.warm_up(setup, seconds=seconds)
            for _ in range(rounds):
                loops.append(loop.drain(setup))
                cores.append(core_seconds(setup, core))
                ours.append(service.drain(setup))
        check_answers(service)
    ideals = [1 / (1 / loop.events_per_second + core) for loop, core in zip(loops, cores, strict=True)]
    return {
        "events_per_s": spread(each.events_per_second for each in ours),
        "loop_events_per_s": spread(each.events_per_second for each in loops),
        "loop_us_per_event": spread(1e6 / each.events_per_second for each in loops),
        "core_us_per_event": spread(1e6 * each for each in cores),
        "ideal_events_per_s": spread(ideals),
        "share_of_ideal": spread(each.events_per_second / ideal for each, ideal in zip(ours, ideals, strict=True)),
        "events_per_cpu_s": spread(each.events_per_cpu_second for each in ours),
        "cores_busy": spread(each.cores for each in ours),
        "broker_cores_busy": spread(each.broker_cores for each in ours),
        "loop_cores_busy": spread(each.cores for each in loops),
        "loop_broker_cores_busy": spread(each.broker_cores for each in loops),
    }


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
