"""A seeded slice of `make fuzz-video`: 300 mutated video files through one running embedder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.videos import MAX_GROWTH, Tally, fuzz
from tests.support.driver import Bus

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

COUNT = 300


def test_300_mutated_files_are_each_accounted_for_by_an_embedder_that_stays_as_it_was(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    tally = fuzz(Bus(kafka.bootstrap_servers, topic_prefix), tmp_path, count=COUNT, warm_up=COUNT // 2, seed=1)
    assert tally.missed() == []
    counts = Counter(tally.outcomes.values())
    assert sum(counts.values()) == COUNT
    assert min(counts[each] for each in ("embedded", "partial", "decode_failed")) >= 10, "a kind was not tried"


WELL = Tally(
    kinds={0: "whole", 1: "truncated", 2: "gif_bomb"},
    outcomes={0: "embedded", 1: "partial", 2: "clip_too_large"},
    resident=(1_000, 1_050),
)


def test_the_verdict_passes_a_run_in_which_all_went_well() -> None:
    assert WELL.missed() == []


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (replace(WELL, outcomes={0: "embedded", 1: "partial"}), "files without an outcome: [2]"),
        (replace(WELL, again=[1]), "files with more than one outcome: [1]"),
        (
            replace(WELL, outcomes=WELL.outcomes | {2: "internal"}),
            "files that were no fault of theirs: {2: 'internal'}",
        ),
        (replace(WELL, outcomes=WELL.outcomes | {0: "no_video"}), "whole files that were not embedded: [0]"),
        (replace(WELL, left=[77]), "decoders that were left over: [77]"),
        (replace(WELL, resident=(1_000, int(1_000 * MAX_GROWTH) + 1)), "memory: 0 MiB, 0 MiB after the warm-up"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_the_verdict_names_each_missed_limit(run: Tally, words: str) -> None:
    assert run.missed() == [words]
