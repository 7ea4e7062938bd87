"""The reranker against the same one written in an afternoon with quixstreams and with faststream.

    make peers && python bench/reranking_peers.py

Same events, same frames (the peers' in float32), same work, same broker, by turns. Query vectors are cached by all.
Each peer runs with two sets of settings, one that fits a backlog (a commit a second, batches of 500) and one that fits
latency (every event committed); ours has one set for both. Latency is compared with the peers' second set, events per
second with both. The peers' packages pin versions of what ours needs too, so `make peers` puts
them into a folder of their own.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from bench.contestants import Contestant, Drain, check_answers
from bench.report import print_figures, spread
from bench.reranking_latency import RATE, Asker, cached, percentiles
from bench.workload import clips, place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.workload import Place

Waits = list[tuple[float, float]]
"""p50 and p99 of each round, in milliseconds."""

NAME = "reranking_peers"
FEW = 500
"""Queries in a backlog where every event is committed by itself."""
COMPARED = 200
"""Answers of each that are compared."""
SAME = 0.01
PACKAGES = Path(sys.prefix) / "peers"
PEERS = {name: str(Path(__file__).parent / "peers" / file) for name, file in (("quixstreams", "quix.py"),
                                                                             ("faststream", "fast.py"))}  # fmt: skip


def write_plain(where: Place) -> Path:
    """Write the clips of the store as an afternoon's work would: the id and the float32 vectors."""
    folder = where.folder / "plain"
    with (
        lmdb.open(str(folder), map_size=1 << 40) as environment,
        environment.begin(write=True) as transaction,
    ):
        for clip in clips(where.clip_count, where.encoder.dim):
            transaction.put(clip.clip_id.encode(), clip.vectors.tobytes())
    return folder


def start(where: Place, mode: str, plain: Path, stack: ExitStack) -> dict[str, Contestant]:
    """Start ours and the peers, each with topics of its own."""
    contestants = {"streamer": Contestant.service(where, where.bus(f"{mode}-streamer"))}
    for name, script in PEERS.items():
        bus = where.bus(f"{mode}-{name}")
        contestants[name] = Contestant.script(
            name, where, bus, [script, mode, str(plain)], PYTHONPATH=str(PACKAGES), **where.settings
        )
    for contestant in contestants.values():
        stack.enter_context(contestant)
    return contestants


def backlogs(where: Place, plain: Path, rounds: int, seconds: float) -> dict[str, list[Drain]]:
    """Let each drain a backlog, by turns."""
    with ExitStack() as stack:
        contestants = start(where, "throughput", plain, stack)
        for contestant in contestants.values():
            contestant.warm_up(where, seconds=seconds)
        drains: dict[str, list[Drain]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, contestant in contestants.items():
                drains[name].append(contestant.drain(where))
        check_same_work(contestants.values())
    return drains


def check_same_work(contestants: Iterable[Contestant]) -> None:
    """Show that all found the same frames: scores differ by no more than float16 vectors and bfloat16 texts explain."""
    found: dict[bytes, dict[str, float]] = {}
    for contestant in contestants:
        for record in check_answers(contestant)[:COMPARED]:
            assert record.key is not None
            scores = {each["clip_id"]: each["frame_score"] for each in record.event["results"]}
            first = found.setdefault(record.key, scores)
            assert first.keys() == scores.keys(), f"{contestant.name} has other candidates"
            apart = max(abs(first[clip] - score) for clip, score in scores.items())
            assert apart < SAME, f"{contestant.name}: a frame's score differs by {apart}"


def latencies(where: Place, plain: Path, rounds: int, count: int) -> tuple[dict[str, Waits], dict[str, list[Drain]]]:
    """Ask each in turn; return p50 and p99 of each round in milliseconds, and how a backlog went beside."""
    with ExitStack() as stack:
        contestants = start(where, "latency", plain, stack)
        askers = {}
        for name, contestant in contestants.items():
            contestant.warm_up(where, seconds=0)
            contestant.backlog = FEW
            askers[name] = Asker(contestant, where)
        waits: dict[str, Waits] = {name: [] for name in askers}
        drains: dict[str, list[Drain]] = {name: [] for name in askers}
        for number in range(-1, rounds):
            for name, asker in askers.items():
                result = percentiles(asker.ask(cached(count), RATE))
                sys.stderr.write(f"{name}: p50 {result[0]:.2f}, p99 {result[1]:.2f} ms\n")
                if number >= 0:
                    waits[name].append(result)
                    drains[name].append(contestants[name].drain(where))
                    asker.skip()
        for asker in askers.values():
            asker.close()
    return waits, drains


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, seconds, count = (1, 0.5, 20) if quick else (3, 2.0, 150)
    with place(quick=quick) as where:
        plain = write_plain(where)
        drains = backlogs(where, plain, rounds, seconds)
        waits, committed_each = latencies(where, plain, rounds, count)
    figures: dict[str, Any] = {}
    figures["streamer_events_per_s"] = spread(each.events_per_second for each in drains["streamer"])
    for name in waits:
        figures[f"{name}_p50_ms"] = spread(p50 for p50, _ in waits[name])
        figures[f"{name}_p99_ms"] = spread(p99 for _, p99 in waits[name])
    for name in PEERS:
        for kind, theirs in (("backlog", drains[name]), ("latency", committed_each[name])):
            figures[f"{name}_{kind}_settings_events_per_s"] = spread(each.events_per_second for each in theirs)
            figures[f"times_{name}_{kind}_settings"] = spread(
                one.events_per_second / other.events_per_second
                for one, other in zip(drains["streamer"], theirs, strict=True)
            )
        figures[f"p99_to_{name}_ratio"] = spread(
            one[1] / other[1] for one, other in zip(waits["streamer"], waits[name], strict=True)
        )
    return figures


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
