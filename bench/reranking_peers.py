"""The reranker against the same one written in an afternoon with quixstreams and with faststream.

    make peers && python bench/reranking_peers.py

Same events, same frames (the peers' in float32), same work, same broker, by turns. All cache query vectors, and are
asked in two ways. *Known* texts: none but a few that all have cached, so that only transport and scoring count. *New*
texts: one query in ten asks what nobody has asked before, which is few; logs of web searches have many more that no
cache can answer (Baeza-Yates et al., The Impact of Caching on Search Engines, SIGIR 2007).

Each peer runs with two sets of settings, one that fits a backlog (a commit a second, batches of 500) and one that fits
latency (every event committed); ours has one set for both. Latency is compared with the peers' second set, events per
second with both where texts are known and with the first one where some are new. The peers' packages pin versions of
what ours needs too, so `make peers` puts them into a folder of their own.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from bench.contestants import Contestant, Drain, check_answers
from bench.report import print_figures, spread
from bench.reranking_latency import RATE, Requester, percentiles
from bench.workload import clips, place, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.workload import Place

Drains = dict[tuple[str, str], list[Drain]]
"""How the backlogs of each round went, by the way of asking and by name."""
Waits = dict[tuple[str, str], list[tuple[float, float]]]
"""p50 and p99 of each round, in milliseconds, by the same."""

NAME = "reranking_peers"
NEW_EVERY = {"known": 0, "new": 10}
"""The two ways to ask: one text in how many is new."""
FEW = 300
"""Queries in a backlog where every event is committed by itself."""
SLOW_PILOT = 300
"""Queries in the smallest backlog with new texts."""
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


def backlogs(where: Place, plain: Path, rounds: int, seconds: float) -> Drains:
    """Let each drain backlogs of known and with new texts, by turns."""
    drains: Drains = defaultdict(list)
    with ExitStack() as stack:
        contestants = start(where, "throughput", plain, stack)
        sizes = {}
        for name, contestant in contestants.items():
            contestant.warm_up(where, seconds=seconds)
            sizes["known", name] = contestant.backlog
            contestant.new_every = NEW_EVERY["new"]
            contestant.size(where, seconds=1.5 * seconds, pilot=SLOW_PILOT)
            sizes["new", name] = contestant.backlog
        for _ in range(rounds):
            for (asked, name), size in sizes.items():
                contestant = contestants[name]
                contestant.backlog, contestant.new_every = size, NEW_EVERY[asked]
                drains[asked, name].append(contestant.drain(where))
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


def latencies(where: Place, plain: Path, rounds: int, count: int) -> tuple[Waits, dict[str, list[Drain]]]:
    """Ask each in turn; return how long answers took, and how a backlog of known texts went beside."""
    waits: Waits = defaultdict(list)
    drains: dict[str, list[Drain]] = defaultdict(list)
    with ExitStack() as stack:
        contestants = start(where, "latency", plain, stack)
        askers = {}
        for name, contestant in contestants.items():
            contestant.warm_up(where, seconds=0)
            contestant.backlog = FEW
            askers[name] = Requester(contestant, where)
        for number in range(-1, rounds):
            for name, asker in askers.items():
                for asked, new_every in NEW_EVERY.items():
                    some = texts(count, first=(number + 2) * count, new_every=new_every)
                    result = percentiles(asker.ask(some, RATE))
                    sys.stderr.write(f"{name}, {asked} texts: p50 {result[0]:.2f}, p99 {result[1]:.2f} ms\n")
                    if number >= 0:
                        waits[asked, name].append(result)
                if number >= 0:
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
    return {asked: figures(asked, drains, waits) for asked in NEW_EVERY} | {
        "committed_each": {peer: against(drains["known", "streamer"], committed_each[peer]) for peer in PEERS}
    }


def figures(asked: str, drains: Drains, waits: Waits) -> dict[str, Any]:
    """Sum up what was measured where queries were asked in this way."""
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
    """Compare how backlogs went."""
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
