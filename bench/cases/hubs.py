"""What a correction of hubs gains. A hub is a clip whose frame scores are high for many queries, whatever they ask.

A bank of queries that are no topics says how close a clip is to any query. One number of each clip is made from its
frame scores s' for the bank, and corrects its frame score s (by ``max``):

- ``inverted softmax:BETA``: s - log(sum of exp(BETA * s')) / BETA. It orders as exp(BETA * s) / sum of exp(BETA * s')
  does (Smith et al., ICLR 2017), and stays on the scale of a cosine.
- ``dynamic:BETA``: the same only for queries whose best candidate is the best of all clips for a query of the bank
  (QB-Norm; Bogolin et al., CVPR 2022).
- ``nearest:WEIGHT``: s - WEIGHT * (the mean of the largest s') (Chowdhury et al., EMNLP 2024).
- ``ratio:BETA``: exp(BETA * s) / sum of exp(BETA * s') itself. It also widens the gaps between the best candidates, so
  it is compared with
- ``exponential:BETA``: exp(BETA * s), which knows of no bank.

Which BETA or WEIGHT is best is chosen on training topics. Two comparisons are made: at the service's alpha, and with an
alpha that is also chosen on training topics, with the correction and without.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases import method
from bench.cases.held_out import compared, correct, held_out
from streamer.evaluation.sweep import Grid
from streamer.pooling import MAX
from streamer.settings import load
from streamer.synthetic.scenes import Scene, describe, draw_scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamer.synthetic.clips import DemoQuery

    FloatArray = npt.NDArray[np.float64]
    BoolArray = npt.NDArray[np.bool_]

_BETAS = (1.0, 5.0, 20.0)
WAYS: Mapping[str, Sequence[float]] = {
    "inverted softmax": _BETAS,
    "dynamic": _BETAS,
    "nearest": (0.1, 0.25, 0.5),
    "ratio": _BETAS,
    "exponential": _BETAS,
}
NONE = "none"
USUAL, BEST = "the service's alpha", "the best alpha"
"""At which alpha a correction is compared."""
NEAREST = 16
"""The number of queries of a bank that are nearest to a clip."""
_STEPS = 10
_BANK_STREAM = 6
"""A stream of random numbers apart from those of clips, topics and engines."""


def draw_bank(topics: Sequence[DemoQuery], *, count: int, seed: int) -> list[str]:
    """Draw ``count`` queries of the topics' kind, for scenes of no clip; none asks for what a topic asks for."""
    rng = np.random.default_rng([seed, _BANK_STREAM])
    asked = {topic.wanted for topic in topics}
    texts: list[str] = []
    while len(texts) < count:
        scene = draw_scene(rng)
        item = replace(scene.items[int(rng.integers(len(scene.items)))], size=None)
        wanted = Scene((item,), None) if rng.integers(2) else Scene((replace(item, colour=None),), scene.background)
        if wanted not in asked:
            texts.append(describe(wanted, rng))
    return texts


def statistic(way: str, parameter: float, bank: FloatArray) -> FloatArray:
    """Return the number of each clip (n,) that corrects its frame score, from its frame scores for the bank (b, n)."""
    if way == "exponential":
        return np.zeros(bank.shape[1])
    if way == "nearest":
        count = min(NEAREST, len(bank))
        return np.asarray(parameter * np.partition(bank, len(bank) - count, axis=0)[len(bank) - count :].mean(axis=0))
    top = bank.max(axis=0)
    return np.asarray(top + np.log(np.exp(parameter * (bank - top)).sum(axis=0)) / parameter)


def corrected(way: str, parameter: float, frame: FloatArray, statistics: FloatArray, is_best: BoolArray) -> FloatArray:
    """Correct the frame scores (n,) of candidates by their ``statistics`` (n,).

    ``is_best`` (n,): whether a candidate is the best of all clips for some query of the bank.
    """
    if way == "dynamic" and not is_best[frame.argmax()]:
        return frame
    found = frame - statistics
    return np.exp(parameter * (found - found.max())) if way in ("ratio", "exponential") else found


def best_clips(bank: FloatArray) -> BoolArray:
    """Return which clips (n,) are the best of all for some query of a bank (b, n)."""
    return np.isin(np.arange(bank.shape[1]), bank.argmax(axis=1))


def skewness(bank: FloatArray, first: int = 10) -> float:
    """Return the skewness of the number of queries (b, n) that have a clip among their ``first`` best ones.

    It is the usual measure of hubs (Radovanovic, Nanopoulos, Ivanovic, JMLR 2010); 0 without any.
    """
    listed = np.argpartition(-bank, first - 1, axis=1)[:, :first]
    counts = np.bincount(listed.ravel(), minlength=bank.shape[1])
    centred = counts - counts.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / variance**1.5 if variance else 0.0


def values_of(
    world: method.World, asked: Sequence[method.Asked], bank: FloatArray, alphas: Sequence[float], depth: int
) -> dict[str, FloatArray]:
    """Return AP (t, a) of each topic at each alpha, by way and parameter (``way:1``); ``none`` is without a correction.

    A way takes the place of a pooling: both make a clip's frame score.
    """
    ways = {f"{way}:{each:g}": (way, each) for way, parameters in WAYS.items() for each in parameters}
    grid = Grid(tuple(alphas), (depth,), (load({}).method.normalization,), poolings=(NONE, *ways))
    statistics = {name: statistic(*each, bank) for name, each in ways.items()}
    is_best = best_clips(bank)
    found = np.empty((len(asked), len(grid.poolings), len(alphas)))
    for row, (topic, numbers, swept) in enumerate(asked):
        within = numbers[:depth]
        frame = world.frame[MAX][topic][within]
        scores = {NONE: frame} | {
            name: corrected(*each, frame, statistics[name][within], is_best[within]) for name, each in ways.items()
        }
        found[row] = swept.values(scores, grid)[0].reshape(found.shape[1:])
    return {name: found[:, number] for number, name in enumerate(grid.poolings)}


def measure(worlds: Mapping[int, method.World], banks: Mapping[int, FloatArray]) -> dict[str, Any]:
    """Compare all ways with none in all worlds, by seed; ``banks`` are the frame scores (b, clips) for the banks."""
    usual = load({}).method
    alphas = sorted({usual.alpha, *(each / _STEPS for each in range(_STEPS + 1))})
    columns = {USUAL: [alphas.index(usual.alpha)], BEST: [*range(len(alphas))]}
    cells: list[dict[str, Any]] = []
    for seed, world in worlds.items():
        for engine, run in world.runs.items():
            asked = method.asked_of(world, run)
            for depth in (usual.depth, method.WHOLE_LIST):
                where = {"engine": engine, "seed": seed, "depth": depth}
                values = values_of(world, asked, banks[seed], alphas, depth)
                before, after = [], []
                for at in columns.values():
                    for way, parameters in WAYS.items():
                        before.append(held_out(values[NONE][:, at]))
                        after.append(held_out(np.hstack([values[f"{way}:{each:g}"][:, at] for each in parameters])))
                pairs = [(way, than) for than in columns for way in WAYS]
                figures = compared(np.column_stack(before), np.column_stack(after))
                cells += [
                    {"way": way, "than": than, **where, **each}
                    for (way, than), each in zip(pairs, figures, strict=True)
                ]
    correct(cells)
    return {
        "cells": cells,
        "bank": {str(seed): len(bank) for seed, bank in banks.items()},
        "skewness": {str(seed): skewness(bank) for seed, bank in banks.items()},
    }
