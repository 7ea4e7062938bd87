"""Whether a match tells lists with something relevant from lists without; writes docs/bench/match.json.

    make method
    python -m bench.cases.match --clips 40 --topics 15 --bank 40 --depth 20     # the shape, in half a minute

Clips, topics and engines are those of :mod:`bench.cases.method`; the bank are further clips, drawn in the same way.
Each engine answers each topic twice: as it is, where at least one relevant clip is within the depth, and without any
relevant clip, as if the platform had none. Both lists have as many candidates. A signal is good if it is larger for the
first list. Its area under the ROC is the share of pairs, of any topics' lists, of which that is so. The plain signal is
the best frame score, with one cut-off for all queries. Compared with it are

- *percentile*: :func:`streamer.match.percentile.percentile` of the best frame score among the bank's,
- *percentile, rare*: the same without the topic's relevant clips in the bank. Here up to a tenth of all clips are
  relevant, so that a bank has some; in a large store a bank has none of most topics,
- *lead*: by how many standard deviations the best frame score exceeds the mean of its own list. It needs no bank.

An area is the mean over topics of how often the topic's own two lists are on the right side of the other topics' lists,
so that signals are compared topic by topic (paired randomization tests, corrected for all cells by Bonferroni). With
other sizes, nothing is written unless ``--write`` is given; the file and the table say of which sizes they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.cases import method
from bench.cases.held_out import compared, correct
from bench.cases.match_tables import match_table, tables
from bench.harness.machine import about
from streamer.encoders import DEMO, load_encoder
from streamer.match.percentile import percentile
from streamer.method import score_clips
from streamer.pooling import MAX
from streamer.synthetic.clips import judge
from streamer.vectors import ClipList

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    BoolArray = npt.NDArray[np.bool_]

OUT = Path(__file__).parents[2] / "docs" / "bench" / "match.json"
CLIPS, TOPICS, BANK, DEPTH, SEEDS = 150, 60, 300, 100, (11, 12)
PLAIN = "best frame score"
PERCENTILE, RARE, LEAD = "percentile", "percentile, rare", "lead"
WAYS = (PERCENTILE, RARE, LEAD)
HIGH = 0.9
"""A percentile that is uniform is as high in a tenth of all lists."""


class Bank(NamedTuple):
    """By topic, the frame scores (b,) of a bank's clips, and which of them are relevant (b,)."""

    scores: Mapping[str, FloatArray]
    relevant: Mapping[str, BoolArray]


def build(*, clips: int, topics: int, bank: int, seed: int) -> tuple[method.World, Bank]:
    """Draw clips, topics and a bank, and let the engines search."""
    encoder = load_encoder(DEMO, dtype="float32")
    drawn = [method.draw(seed, number, encoder) for number in range(clips + bank)]
    world = method.search(drawn[:clips], encoder, topics=topics, seed=seed)
    others = ClipList(each.vectors for each in drawn[clips:])
    scores, relevant = {}, {}
    for topic in world.topics:
        shown = judge([each.clip for each in drawn[clips:]], topic.wanted)
        relevant[topic.query_id] = np.array([each.clip.clip_id in shown for each in drawn[clips:]])
        scores[topic.query_id] = score_clips(encoder.encode_texts([topic.text])[0], others).cosines
    return world, Bank(scores, relevant)


class Signals(NamedTuple):
    """One signal of each topic's list with relevant clips (t,), and of its list without (t,)."""

    there: FloatArray
    gone: FloatArray

    def shares(self) -> FloatArray:
        """Return each topic's part (t,) in the area under the ROC, which is their mean."""
        above = (self.there[:, None] > self.gone) + 0.5 * (self.there[:, None] == self.gone)
        return np.asarray((above.mean(axis=1) + above.mean(axis=0)) / 2)


def signals_of(world: method.World, engine: str, bank: Bank, depth: int) -> dict[str, Signals]:
    """Return the plain signal and all ways of one engine, for the topics with a relevant clip within the depth."""
    number_of = {clip_id: number for number, clip_id in enumerate(world.clip_ids)}
    rows: dict[str, list[tuple[float, float]]] = {}
    for topic in world.topics:
        shots = world.runs[engine].topics[topic.query_id].ranked().shots
        without = [shot for shot in shots if shot not in topic.relevant][:depth]
        listed = shots[: len(without)]
        if topic.relevant.isdisjoint(listed):
            continue
        frame = world.frame[MAX][topic.query_id]
        there, gone = (frame[[number_of[shot] for shot in each]] for each in (listed, without))
        others = bank.scores[topic.query_id]
        rare = others[~bank.relevant[topic.query_id]]
        found = {
            PLAIN: (float(there.max()), float(gone.max())),
            PERCENTILE: (_percentile(there, others), _percentile(gone, others)),
            RARE: (_percentile(there, rare), _percentile(gone, rare)),
            LEAD: (lead(there), lead(gone)),
        }
        for name, pair in found.items():
            rows.setdefault(name, []).append(pair)
    return {name: Signals(*np.array(pairs).T) for name, pairs in rows.items()}


def _percentile(frame: FloatArray, others: FloatArray) -> float:
    return percentile(float(frame.max()), others, len(frame))


def lead(frame: FloatArray) -> float:
    """Return by how many standard deviations the best score of a list (n,) exceeds its mean; 0 if all are equal."""
    deviation = float(frame.std())
    return float(frame.max() - frame.mean()) / deviation if deviation else 0.0


def measure(worlds: Mapping[int, method.World], banks: Mapping[int, Bank], depth: int = DEPTH) -> dict[str, Any]:
    """Compare all ways with the plain signal in all worlds, by seed."""
    cells: list[dict[str, Any]] = []
    high: list[dict[str, Any]] = []
    for seed, world in worlds.items():
        for engine in world.runs:
            found = signals_of(world, engine, banks[seed], depth)
            where = {"engine": engine, "seed": seed, "topics": len(found[PLAIN].there)}
            before = np.column_stack([found[PLAIN].shares()] * len(WAYS))
            figures = compared(before, np.column_stack([found[way].shares() for way in WAYS]))
            cells += [{"way": way, **where, **each} for way, each in zip(WAYS, figures, strict=True)]
            for way in (PERCENTILE, RARE):
                shares = {side: float(np.mean(getattr(found[way], side) >= HIGH)) for side in Signals._fields}
                high.append({"way": way, **where, **shares})
    correct(cells)
    return {
        "clips": {str(seed): len(world.clip_ids) for seed, world in worlds.items()},
        "topics": {str(seed): len(world.topics) for seed, world in worlds.items()},
        "bank": {str(seed): _size(bank) for seed, bank in banks.items()},
        "relevant_in_bank": {str(seed): _relevant_share(bank) for seed, bank in banks.items()},
        "depth": depth,
        "cells": cells,
        "high": high,
    }


def _size(bank: Bank) -> int:
    return len(next(iter(bank.scores.values())))


def _relevant_share(bank: Bank) -> float:
    return float(np.mean([each.mean() for each in bank.relevant.values()]))


def main() -> None:
    """Measure, write the figures, and print the table."""
    parser = argparse.ArgumentParser(description="Measure how well a match tells that nothing matches.")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--topics", type=int, default=TOPICS)
    parser.add_argument("--bank", type=int, default=BANK)
    parser.add_argument("--depth", type=int, default=DEPTH)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--write", action="store_true", help="write the file with any sizes")
    size = parser.parse_args()
    built = {seed: build(clips=size.clips, topics=size.topics, bank=size.bank, seed=seed) for seed in size.seeds}
    worlds = {seed: world for seed, (world, _) in built.items()}
    figures = measure(worlds, {seed: bank for seed, (_, bank) in built.items()}, size.depth)
    results = {**about(), "figures": figures}
    is_usual = (size.clips, size.topics, size.bank, size.depth, *size.seeds) == (CLIPS, TOPICS, BANK, DEPTH, *SEEDS)
    if not (is_usual or size.write):
        sys.stdout.write(match_table(results))
        return
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    written = "\n".join(write() for write in tables(OUT).values())
    sys.stdout.write(f"{written}\n{OUT}\n")


if __name__ == "__main__":
    main()
