"""What a model makes of one word: how far apart two queries' results are, and whether the difference can be trusted.

For each pair: the rank-biased overlap of the first results of both queries, and the *shift*, the mean over clips of the
second query's best-frame score less the first one's. Its p is that of a paired permutation test: where the word makes
no difference, the two scores of a clip can be exchanged, so their difference has either sign. Clips with the same
scores for all queries are the same video under several ids; they are one piece of evidence, and are exchanged together.
P-values are corrected for all pairs (Holm).

Masked parts of frames, which say nothing about who is shown, move such figures by up to 43 % (ICCV 2025, arXiv
2509.07596), so each figure stands beside its *sensitivity*: the most by which it moves in a
sample of clips whose frames are decoded anew and masked. Where the sensitivity is no smaller than the effect, there is
no verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation import first_results
from streamer.evaluation.comparison import holm
from streamer.evaluation.overlap import overlap_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from streamer.evaluation.words.lists import WordPair
    from streamer.evaluation.words.scores import Scored, Sensitivity

    FloatArray = npt.NDArray[np.float64]

Data = dict[str, Any]

SIGNIFICANT = 0.05
RESAMPLES = 19_999
LEAST_CLUSTERS = 20
"""With fewer different clips there is no verdict."""
DIFFERS, ALIKE, REFUSED, FEW = "differs", "not told apart", "no verdict: masking moves it as much", "too few clips"
_DECIMALS = 6
"""Scores that agree to so many decimals are the same."""
_VALUES = 10_000_000
"""Largest number of signs in memory at once."""
_NAMED = 3
_EXAMPLES = 5


def decide(pairs: Sequence[WordPair], scored: Scored, sensitivity: Sensitivity | None, *, top: int, seed: int) -> Data:
    """Return the figures of all pairs as JSON, with a verdict in words; ``top``: the first results to compare."""
    first, second = scored.scores
    clusters = _clusters(scored.scores)
    count = int(clusters.max()) + 1
    difference = second - first
    shifts = difference.mean(axis=1)
    p_values = permutation(difference, clusters, seed) if count >= LEAST_CLUSTERS else np.ones(len(pairs))
    corrected = holm(dict(enumerate(p_values.tolist())))
    rows = []
    for number, pair in enumerate(pairs):
        spread = float(first[number].std())
        row: Data = {
            "kind": pair.kind,
            "first": pair.first,
            "second": pair.second,
            "words": " / ".join(pair.words),
            "overlap": overlap_of(_best(first[number], top), _best(second[number], top)),
            "shift": float(shifts[number]),
            "shift_in_deviations": float(shifts[number]) / spread if spread else None,
            "p": float(p_values[number]),
            "holm_p": corrected[number],
            **_sensitivity(sensitivity, number, top),
        }
        rows.append({**row, "says": _says(row, count), "overlap_says": _overlap_says(row)})
    found: Data = {
        "clips": len(scored.clips),
        "different_clips": count,
        "top": min(top, len(scored.clips)),
        "sample": None if sensitivity is None else sensitivity.plain.shape[2],
        "not_decoded": None if sensitivity is None else sensitivity.failed,
        "resamples": RESAMPLES,
        "pairs": rows,
        "examples": _examples(rows, scored, top),
    }
    return {"sentence": _sentence(found), "advice": list(_advice(found)), **found}


def permutation(difference: FloatArray, clusters: npt.NDArray[np.intp], seed: int) -> FloatArray:
    """Return the two-sided p-values (p,) of the mean differences (p, n), whose signs are exchanged by cluster (n,)."""
    sums = np.zeros((int(clusters.max()) + 1, len(difference)))
    np.add.at(sums, clusters, difference.T)
    observed = np.abs(sums.sum(axis=0))
    # Rounding must not make an exchange that changes nothing look like a smaller one.
    least = observed * (1 - 1e-9) - 1e-12
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(difference))
    batch = max(1, _VALUES // len(sums))
    for start in range(0, RESAMPLES, batch):
        signs = rng.integers(0, 2, (min(batch, RESAMPLES - start), len(sums)), dtype=np.int8) * 2.0 - 1
        reached += (np.abs(signs @ sums) >= least).sum(axis=0)
    return (1 + reached) / (1 + RESAMPLES)


def _clusters(scores: FloatArray) -> npt.NDArray[np.intp]:
    """Return the number of the cluster of each clip (n,) of scores (2, p, n)."""
    rounded = scores.reshape(-1, scores.shape[2]).T.round(_DECIMALS)
    return np.unique(rounded, axis=0, return_inverse=True)[1].reshape(-1)


def _best(scores: FloatArray, top: int) -> list[int]:
    found: list[int] = np.argsort(-scores, kind="stable")[:top].tolist()
    return found


def _sensitivity(found: Sensitivity | None, number: int, top: int) -> Data:
    """Return how far masks move a pair's figures in the sample; None where there is no sample."""
    if found is None:
        return dict.fromkeys(("shift_sensitivity", "shift_moves", "overlap_sample", "overlap_sensitivity"))

    def figures(scores: FloatArray) -> tuple[float, float]:
        first, second = scores[:, number]
        return float((second - first).mean()), overlap_of(_best(first, top), _best(second, top))

    shift, overlap = figures(found.plain)
    moved = [figures(each) for each in found.masked]
    largest = max(abs(each - shift) for each, _ in moved)
    return {
        "shift_sensitivity": largest,
        "shift_moves": largest / abs(shift) if shift else None,
        "overlap_sample": overlap,
        "overlap_sensitivity": max(abs(each - overlap) for _, each in moved),
    }


def _says(row: Mapping[str, Any], clusters: int) -> str:
    if clusters < LEAST_CLUSTERS:
        return FEW
    if row["holm_p"] >= SIGNIFICANT:
        return ALIKE
    sensitivity = row["shift_sensitivity"]
    return REFUSED if sensitivity is not None and sensitivity >= abs(row["shift"]) else DIFFERS


def _overlap_says(row: Mapping[str, Any]) -> str:
    """Say whether the lists' difference is larger than what masks do to it, in the sample."""
    sensitivity = row["overlap_sensitivity"]
    if sensitivity is None:
        return "sensitivity not measured"
    return REFUSED if sensitivity >= 1 - row["overlap_sample"] else "larger than its sensitivity"


def _examples(rows: Sequence[Mapping[str, Any]], scored: Scored, top: int) -> list[Data]:
    """Return the first results of both queries of the pairs that overlap least, of those that differ."""
    of = sorted((each["overlap"], number) for number, each in enumerate(rows) if each["says"] == DIFFERS)
    first, second = scored.scores

    def results(scores: FloatArray) -> list[str]:
        return [scored.clips[clip] for clip in _best(scores, top)]

    return [
        first_results.example(
            f"{rows[number]['first']} | {rows[number]['second']}", results(first[number]), results(second[number])
        )
        for _, number in of[:_EXAMPLES]
    ]


def _sentence(found: Data) -> str:
    rows = found["pairs"]
    of = {says: [each for each in rows if each["says"] == says] for says in (DIFFERS, REFUSED)}
    if found["different_clips"] < LEAST_CLUSTERS:
        return f"No verdict: {found['different_clips']:,} different clips are too few; {LEAST_CLUSTERS} are needed."
    asked = f"of {len(rows):,} pairs of queries that differ in one word, on {found['clips']:,} clips"
    parts = []
    if of[DIFFERS]:
        largest = sorted(of[DIFFERS], key=lambda each: -abs(each["shift"]))[:_NAMED]
        named = "; ".join(f"{each['kind']}: {each['words']} by {each['shift']:+.4f}" for each in largest)
        parts.append(f"The word moves the scores in {len(of[DIFFERS]):,} {asked}, most of all {named}.")
    else:
        parts.append(f"The word is shown to move the scores in none {asked}.")
    if of[REFUSED]:
        parts.append(
            f"There is no verdict on {len(of[REFUSED]):,} more, since masking a tenth of the picture moves them by as "
            "much as they are large."
        )
    if found["sample"] is None:
        parts.append("How far masked frames would move these figures was not measured.")
    return " ".join(parts)


def _advice(found: Data) -> Iterator[str]:
    differing = [each for each in found["pairs"] if each["says"] == DIFFERS]
    if found["different_clips"] < LEAST_CLUSTERS:
        yield "Ask a store with more clips, or raise --clips."
        return
    if found["sample"] is None:
        yield (
            "Give the clips' files with --videos: a difference is to be trusted only where masked frames move it by "
            "less than it is large."
        )
    if differing:
        yield (
            "Look at the first results below: a word that means something else in the pictures (a uniform, a place) is "
            "no bias; one that only says who is shown is."
        )
        yield (
            "A higher STREAMER_ALPHA leaves more of the order to the engine, another STREAMER_MODEL may differ less: "
            "probe both before you choose. streamer audit says what your users see of it."
        )
    if any(each["says"] == REFUSED for each in found["pairs"]):
        yield "Where there is no verdict, ask more clips and larger samples (--clips, --sample), or trust none of them."
    if not differing:
        yield "No difference that is shown is no proof of fairness: these are few queries, and only these clips."
