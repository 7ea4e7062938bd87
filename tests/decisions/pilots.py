"""Pilots on simulated users: what is decided for orders that gain or harm, and whether intervals hold the truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation.pilot import counterfactual, position_bias
from streamer.evaluation.pilot.counterfactual import Clicked
from streamer.evaluation.pilot.decision import COLLECT, READY, STOP, Limits, decide
from streamer.evaluation.pilot.position_bias import ASSUMED, ESTIMATED, Shown, assumed
from tests.decisions import users as simulated
from tests.decisions.users import Users
from tests.decisions.world import DEPTH, GAINING, HARMFUL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.evaluation.pilot.counterfactual import Estimate
    from tests.decisions.users import Visits
    from tests.decisions.world import Engine, FloatArray, IntArray

KINDS: Mapping[str, Users] = {
    "1/rank": Users(1.0),
    "1/sqrt(rank)": Users(0.5),
    "from rank to rank": Users(patience=0.9),
}
QUERIES = 2_000
LEAST_COVERAGE = 0.93


@dataclass
class Outcome:
    """The pilots of one engine's order with one kind of users.

    ``covered``: by position bias, how many intervals hold the true change; known only for users whose bias it is.
    ``by_raw_clicks``: what the change of the reciprocal rank of the first clicked result would have decided.
    """

    engine: str
    users: str
    order: str
    truth: float
    runs: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    by_raw_clicks: Counter[str] = field(default_factory=Counter)
    covered: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> list[str]:
        """Return in sentences what must not be."""
        name = f"{self.order} by engine {self.engine}, users {self.users}"
        wrong = READY if self.order in HARMFUL else STOP
        said = [f"{name}: {self.decisions[wrong]} of {self.runs} pilots say {wrong}"] if self.decisions[wrong] else []
        return said + [
            f"{name}: {covered} of {self.runs} intervals under {bias} hold the true change"
            for bias, covered in self.covered.items()
            if covered < _least_covered(self.runs)
        ]


def _least_covered(runs: int) -> float:
    """Return the count below which coverage is less than :data:`LEAST_COVERAGE`, by two of its standard errors."""
    return LEAST_COVERAGE * runs - 2 * float(np.sqrt(LEAST_COVERAGE * (1 - LEAST_COVERAGE) * runs))


def simulate(engine: Engine, kind: str, *, runs: int, queries: int = QUERIES, seed: int = 0) -> list[Outcome]:
    """Let users of a ``kind`` click, ``runs`` times, and decide for each order."""
    outcomes = {
        order: Outcome(engine.name, kind, order, simulated.true_change(engine, order)) for order in engine.ranks
    }
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        visits = simulated.visits(engine, KINDS[kind], queries=queries, rng=rng)
        fitted = position_bias.fit(_shown(engine, visits))
        query, rank = np.nonzero(visits.clicked)
        for order, outcome in outcomes.items():
            ranks = engine.ranks[order][visits.version, visits.topic]
            clicks = Clicked(visits.session[query], rank + 1, ranks[query, rank])
            estimates = {name: counterfactual.estimate(clicks, assumed(each)) for name, each in ASSUMED.items()}
            if fitted is not None:
                estimates[ESTIMATED] = counterfactual.estimate_fitted(clicks, *fitted)
            outcome.runs += 1
            outcome.decisions[_decision(estimates, visits)] += 1
            outcome.by_raw_clicks[_by_raw_clicks(visits, ranks)] += 1
            for bias, found in estimates.items():
                if bias == kind or (bias == ESTIMATED and kind in ASSUMED):
                    outcome.covered[bias] += _holds(found, outcome.truth)
    return list(outcomes.values())


def _holds(found: Estimate | None, truth: float) -> bool:
    return found is not None and found.low is not None and found.high is not None and found.low <= truth <= found.high


def _shown(engine: Engine, visits: Visits) -> Shown:
    queries, ranks = visits.clicked.shape
    clips = engine.clips[visits.version, visits.topic]
    pairs = visits.topic[:, None] * (1 + engine.clips.max()) + clips
    rank = np.tile(np.arange(1, ranks + 1), queries)
    return Shown(pairs.ravel(), rank, visits.clicked.ravel(), np.repeat(visits.session, ranks))


def _decision(estimates: Mapping[str, Any], visits: Visits) -> str:
    """Decide with all that clicks do not tell in order."""
    found = {
        "queries": len(visits.topic),
        "coverage": {"not_embedded_share": 0.0},
        "order": {"overlap": 0.5},
        "service": {"degraded_share": 0.0, "p95_ms": 50.0},
        "clicks": {
            "queries": int(visits.clicked.any(axis=1).sum()),
            "estimates": [{"bias": name, **asdict(each)} for name, each in estimates.items() if each is not None],
        },
    }
    decision: str = decide(found, Limits())["decision"]
    return decision


def _by_raw_clicks(visits: Visits, ranks: IntArray) -> str:
    """Decide by the interval of the change of the first click's reciprocal rank, as if users had no position bias."""
    clicked = visits.clicked[has := visits.clicked.any(axis=1)]
    nowhere = 10 * DEPTH
    before = np.where(clicked, np.arange(1, clicked.shape[1] + 1), nowhere).min(axis=1)
    after = np.where(clicked, ranks[has], nowhere).min(axis=1)
    gains: FloatArray = 1 / after - 1 / before
    low = gains.mean() - 2 * gains.std() / np.sqrt(len(gains))
    return READY if low >= -Limits().margin else STOP


def table(outcomes: Sequence[Outcome]) -> str:
    """Return all outcomes as text."""
    lines = [
        "| engine | users | order | true change | ready | stop | more | intervals that hold it | raw: go | stop |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in outcomes:
        covered = ", ".join(f"{bias} {100 * count / each.runs:.1f} %" for bias, count in each.covered.items())
        decided = " | ".join(str(each.decisions[name]) for name in (READY, STOP, COLLECT))
        raw = " | ".join(str(each.by_raw_clicks[name]) for name in (READY, STOP))
        lines.append(
            f"| {each.engine} | {each.users} | {each.order} | {each.truth:+.4f} | {decided} | {covered} | {raw} |"
        )
    return "\n".join(lines)


def sure(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the share of right verdicts where one is given: *ready* for gain, *stop* for harm."""
    shares = {}
    for name, orders, right in (("gain", (GAINING,), READY), ("harm", HARMFUL, STOP)):
        chosen = [each for each in outcomes if each.order in orders]
        shares[name] = sum(each.decisions[right] for each in chosen) / sum(each.runs for each in chosen)
    return shares
