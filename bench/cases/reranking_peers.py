"""The reranker, compared with simple rerankers that use quixstreams and faststream.

    make peers && python bench/cases/reranking_peers.py

All have the same events, frames (the peers' in float32), work and broker, and take turns. All cache query vectors.
There are two kinds of queries. *Known* texts are a few that all have cached, so that only transport and scoring count.
With *new* texts, one query in ten has a text that was never used before. That is a small share: in logs of web search,
many more queries cannot be answered from a cache (Baeza-Yates et al., The Impact of Caching on Search Engines, SIGIR
2007).

Each peer runs with two sets of settings, one for throughput (one commit per second, or batches of 500) and one for
latency (every event is committed); the service has one set for both. Latency is compared with the peers' second set;
throughput is compared with both sets for known texts, and with the first set for new texts. The peers' packages pin
versions of shared dependencies, so `make peers` installs them in a separate folder.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from bench.cases.reranking_latency import RATE, Requester, percentiles
from bench.harness.contestants import Contestant, Drain, check_answers
from bench.harness.report import print_figures, spread
from bench.harness.workload import clips, set_up, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.harness.workload import Setup

Drains = dict[tuple[str, str], list[Drain]]
"""(kind of texts, name) -> measurements of the backlogs, one per round."""
Waits = dict[tuple[str, str], list[tuple[float, float]]]
"""(kind of texts, name) -> (p50, p99) in milliseconds, one pair per round."""

NAME = "reranking_peers"
NEW_EVERY = {"known": 0, "new": 10}
"""Kind of texts -> one text in this many is new; 0: none is."""
FEW = 300
"""Number of queries in a backlog for peers that commit every event."""
SLOW_PILOT = 300
"""Number of queries in the smallest backlog with new texts."""
COMPARED = 200
"""Number of results of each reranker that are compared."""
SAME = 0.01
PACKAGES = Path(sys.prefix) / "peers"
PEERS = {name: str(Path(__file__).parents[1] / "peers" / file) for name, file in (("quixstreams", "quix.py"),
                                                                             ("faststream", "fast.py"))}  # fmt: skip


def write_plain(setup: Setup) -> Path:
    """Write the store's clips to the LMDB folder of the peers: clip id -> float32 vectors."""
    folder = setup.folder / "plain"
    with (
        lmdb.open(str(folder), map_size=1 << 40) as environment,
        environment.begin(write=True) as transaction,
    ):
        for clip in clips(setup.clip_count, setup.encoder.dim):
            transaction.put(clip.clip_id.encode(), clip.vectors.tobytes())
    return folder


def start(setup: Setup, mode: str, plain: Path, stack: ExitStack) -> dict[str, Contestant]:
    """Start the service and the peers, each with separate topics."""
    contestants = {"streamer": Contestant.service(setup, setup.bus(f"{mode}-streamer"))}
    for name, script in PEERS.items():
        bus = setup.bus(f"{mode}-{name}")
        contestants[name] = Contestant.script(
            name, setup, bus, [script, mode, str(plain)], PYTHONPATH=str(PACKAGES), **setup.settings
        )
    for contestant in contestants.values():
        stack.enter_context(contestant)
    return contestants


def backlogs(setup: Setup, plain: Path, rounds: int, seconds: float) -> Drains:
    """Let all drain backlogs in turn, with known and with new texts."""
    drains: Drains = defaultdict(list)
    with ExitStack() as stack:
        contestants = start(setup, "throughput", plain, stack)
        sizes = {}
        for name, contestant in contestants.items():
            contestant.warm_up(setup, seconds=seconds)
            sizes["known", name] = contestant.backlog
            contestant.new_every = NEW_EVERY["new"]
            contestant.size(setup, seconds=1.5 * seconds, pilot=SLOW_PILOT)
            sizes["new", name] = contestant.backlog
        for _ in range(rounds):
            for (asked, name), size in sizes.items():
                contestant = contestants[name]
                contestant.backlog, contestant.new_every = size, NEW_EVERY[asked]
                drains[asked, name].append(contestant.drain(setup))
        check_same_work(contestants.values())
    return drains


def check_same_work(contestants: Iterable[Contestant]) -> None:
    """Assert that frame scores differ only as much as float16 vectors and bfloat16 text encoding explain."""
    found: dict[bytes, dict[str, float]] = {}
    for contestant in contestants:
        for record in check_answers(contestant)[:COMPARED]:
            assert record.key is not None
            scores = {each["clip_id"]: each["frame_score"] for each in record.event["results"]}
            first = found.setdefault(record.key, scores)
            assert first.keys() == scores.keys(), f"{contestant.name} has other candidates"
            apart = max(abs(first[clip] - score) for clip, score in scores.items())
            assert apart < SAME, f"{contestant.name}: a frame score differs by {apart}"


def latencies(setup: Setup, plain: Path, rounds: int, count: int) -> tuple[Waits, dict[str, list[Drain]]]:
    """Send queries to each in turn; return their latencies, and measurements of backlogs of known texts."""
    waits: Waits = defaultdict(list)
    drains: dict[str, list[Drain]] = defaultdict(list)
    with ExitStack() as stack:
        contestants = start(setup, "latency", plain, stack)
        requesters = {}
        for name, contestant in contestants.items():
            contestant.warm_up(setup, seconds=0)
            contestant.backlog = FEW
            requesters[name] = Requester(contestant, setup)
        for number in range(-1, rounds):
            for name, requester in requesters.items():
                for asked, new_every in NEW_EVERY.items():
                    some = texts(count, first=(number + 2) * count, new_every=new_every)
                    result = percentiles(requester.send(some, RATE))
                    sys.stderr.write(f"{name}, {asked} texts: p50 {result[0]:.2f}, p99 {result[1]:.2f} ms\n")
                    if number >= 0:
                        waits[asked, name].append(result)
                if number >= 0:
                    drains[name].append(contestants[name].drain(setup))
                    requester.skip()
        for requester in requesters.values():
            requester.close()
    return waits, drains


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size."""
    rounds, seconds, count = (1, 0.5, 20) if quick else (3, 2.0, 150)
    with set_up(quick=quick) as setup:
        plain = write_plain(setup)
        drains = backlogs(setup, plain, rounds, seconds)
        waits, committed_each = latencies(setup, plain, rounds, count)
    return {asked: figures(asked, drains, waits) for asked in NEW_EVERY} | {
        "committed_each": {peer: against(drains["known", "streamer"], committed_each[peer]) for peer in PEERS}
    }


def figures(asked: str, drains: Drains, waits: Waits) -> dict[str, Any]:
    """Summarise the measurements with one kind of texts."""
    ours, our_waits = drains[asked, "streamer"], waits[asked, "streamer"]
    found: dict[str, Any] = {"streamer": {"events_per_s": spread(each.events_per_second for each in ours)}}
    for peer in PEERS:
        found[peer] = against(ours, drains[asked, peer])
        found[peer]["p99_ratio"] = spread(
            one[1] / other[1] for one, other in zip(our_waits, waits[asked, peer], strict=True)
        )
    for name in ("streamer", *PEERS):
        found[name]["p50_ms"] = spread(p50 for p50, _ in waits[asked, name])
        found[name]["p99_ms"] = spread(p99 for _, p99 in waits[asked, name])
    return found


def against(ours: Sequence[Drain], theirs: Sequence[Drain]) -> dict[str, Any]:
    """Compare the measurements of backlogs."""
    return {
        "events_per_s": spread(each.events_per_second for each in theirs),
        "times": spread(
            one.events_per_second / other.events_per_second for one, other in zip(ours, theirs, strict=True)
        ),
    }


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
