"""Rules for alpha and corrections of hubs on synthetic engines; writes docs/bench/alpha-and-hubs.json.

    make method
    python -m bench.cases.alpha_and_hubs --clips 100 --topics 30        # the shape, in a minute

Clips, topics and engines are those of :mod:`bench.cases.method`, whose figures are compared topic by topic.
:mod:`bench.cases.alpha_rules` and :mod:`bench.cases.hubs` say what is compared. The p-values (paired randomization
tests) are corrected for all cells of a table (Bonferroni). With other sizes than the page's, nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases import alpha_rules, hubs, method
from bench.cases.alpha_and_hubs_tables import hubs_table, rules_table, tables
from bench.harness.machine import about
from streamer.encoders import DEMO, load_encoder
from streamer.method import score_clips
from streamer.vectors import ClipList

if TYPE_CHECKING:
    from collections.abc import Mapping

OUT = Path(__file__).parents[2] / "docs" / "bench" / "alpha-and-hubs.json"
BANK = 400
"""The number of queries of the bank."""


def build(*, clips: int, topics: int, seed: int, bank: int = BANK) -> tuple[method.World, hubs.FloatArray]:
    """Draw clips, topics and a bank; return the world and the bank's frame scores (b, clips)."""
    encoder = load_encoder(DEMO, dtype="float32")
    drawn = [method.draw(seed, number, encoder) for number in range(clips)]
    world = method.search(drawn, encoder, topics=topics, seed=seed)
    stored = ClipList(each.vectors for each in drawn)
    texts = hubs.draw_bank(world.topics, count=bank, seed=seed)
    return world, np.array([score_clips(encoder.encode_texts([text])[0], stored).cosines for text in texts])


def measure(worlds: Mapping[int, method.World], banks: Mapping[int, hubs.FloatArray]) -> dict[str, Any]:
    """Measure rules and corrections in all worlds, by seed."""
    return {
        "clips": {str(seed): len(world.clip_ids) for seed, world in worlds.items()},
        "topics": {str(seed): len(world.topics) for seed, world in worlds.items()},
        "rules": alpha_rules.measure(worlds),
        "hubs": hubs.measure(worlds, banks),
    }


def main() -> None:
    """Measure, write the figures, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure rules for alpha and corrections of hubs.")
    parser.add_argument("--clips", type=int, default=method.CLIPS)
    parser.add_argument("--topics", type=int, default=method.TOPICS)
    size = parser.parse_args()
    built = {seed: build(clips=size.clips, topics=size.topics, seed=seed) for seed in method.SEEDS}
    figures = measure(
        {seed: world for seed, (world, _) in built.items()}, {seed: bank for seed, (_, bank) in built.items()}
    )
    results = {**about(), "figures": figures}
    if (size.clips, size.topics) != (method.CLIPS, method.TOPICS):
        sys.stdout.write(f"{rules_table(results)}\n{hubs_table(results)}")
        return
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    written = "\n".join(write() for write in tables(OUT).values())
    sys.stdout.write(f"{written}\n{OUT}\n")


if __name__ == "__main__":
    main()
