"""One page of each report, made by the product's own code from made-up results: what is looked at in every page.

Names and texts are hostile: they hold what HTML, a shell and a narrow screen would trip over.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.demo import report as demo_report
from streamer.demo.report import FramePictures, Judged
from streamer.evaluation import match_report, matching, report, runs_report, sweep_report
from streamer.evaluation.audit import report as audit_report
from streamer.evaluation.audit import verdict
from streamer.evaluation.audit.figures import Audit
from streamer.evaluation.audit.groups import Catalogue
from streamer.evaluation.audit.lists import Lists
from streamer.evaluation.choice import Caution
from streamer.evaluation.comparison import compare, compare_all
from streamer.evaluation.first_results import example
from streamer.evaluation.measures import evaluate
from streamer.evaluation.page import Page, render
from streamer.evaluation.pilot import decision
from streamer.evaluation.pilot import report as pilot_report
from streamer.evaluation.pilot.clicks import Clicks
from streamer.evaluation.pilot.figures import Pilot
from streamer.evaluation.sweep import Grid
from streamer.evaluation.sweep_run import Column, Sweep
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run
from streamer.evaluation.variants import Variant
from streamer.evaluation.words import report as words_report
from streamer.evaluation.words.figures import decide
from streamer.evaluation.words.lists import STARTER, WordPair, read_pairs
from streamer.evaluation.words.scores import Scored, Sensitivity
from streamer.events import QueryReranked, RerankedCandidate, Status
from streamer.pooling import MAX
from streamer.synthetic import probe_report, probes
from tests.support.banks import bank

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "</script><b>a query & a 'clip' of a very long name-" + "without-any-space-" * 6
NAME = "a man on a red bicycle" if "REPORT_PICTURES" in os.environ else HOSTILE
"""What runs, models and queries are called: in pictures for the documentation not what is hostile."""
AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_TOPICS = [*(f"{1500 + number}" for number in range(14)), NAME]
_MEASURES = ["infAP", "nDCG@10", "MdR"]


def _run(seed: int, boost: float) -> Run:
    random = np.random.default_rng(seed)
    shots = tuple(f"shot{shot}_{NAME if shot == 3 else shot}" for shot in range(40))
    return Run({topic: Ranking(shots, random.random(40) + boost * (np.arange(40) < 8)) for topic in _TOPICS})


def _qrels() -> Qrels:
    shots = [f"shot{shot}_{NAME if shot == 3 else shot}" for shot in range(40)]
    rels = [int(number < 8) if number % 3 else -1 for number in range(40)]
    return Qrels({topic: Judgments.of(shots, ["1"] * 40, rels) for topic in _TOPICS})


def _texts() -> dict[str, str]:
    return {topic: f"{NAME} {topic}" for topic in _TOPICS[::2]}


def evaluated() -> tuple[Page, Any]:
    """One run alone."""
    found = report.data(evaluate(_run(1, 0.1), _qrels(), _MEASURES), None, {}, _texts())
    return report.page(found, NAME, "qrels"), found


def compared(after: float = 0.6) -> tuple[Page, Any]:
    """A run before and after."""
    runs = _run(1, 0.1), _run(2, after)
    base, reranked = (evaluate(run, _qrels(), _MEASURES) for run in runs)
    found = report.data(base, reranked, compare(base, reranked), _texts())
    gains = found["comparison"]["infAP"]["gains"]
    found["examples"] = report.examples(gains, runs, _qrels(), _texts(), "infAP")
    return report.page(found, NAME, "qrels", NAME, warnings=[NAME]), found


def several() -> tuple[Page, Any]:
    """Two runs against a first one."""
    runs = _run(1, 0.1), _run(2, 0.6)
    base, *others = (evaluate(run, _qrels(), _MEASURES) for run in (*runs, _run(3, 0.0)))
    named = dict(zip((NAME, "third"), others, strict=True))
    found = runs_report.data(base, named, compare_all(base, named), _texts())
    gains = found["comparisons"][found["best"]]["infAP"]["gains"]
    found["examples"] = report.examples(gains, runs, _qrels(), _texts(), "infAP")
    return runs_report.page(found, "engine", "qrels"), found


def swept(gain: float = 0.2) -> tuple[Page, Any]:
    """A sweep in which reranking gains so much."""
    random = np.random.default_rng(4)
    grid = Grid((0.0, 0.4, 1.0), (10, 100), ("minmax", "zscore"), ("own", "impute"), (MAX, "softmax:0.1"))
    columns = tuple(
        Column(NAME, variant, method, 1.5, 1000.0 + 10 * number, 8.0)
        for variant in (Variant(), Variant(1000, "int8"))
        for number, method in enumerate(grid.points())
    )
    share = np.array([1 - column.method.alpha for column in columns])
    values = 0.4 + gain * share + 0.02 * random.standard_normal((60, 1)) + 0.001 * random.random((60, len(columns)))
    topics = tuple(map(str, range(60)))
    measured = Sweep(("infAP", "nDCG@10"), topics, np.full((2, 60), 0.4), columns, np.stack([values, values]))
    found = sweep_report.data(measured, Caution(), 5)
    found["examples"] = [example(NAME, ["a", "b"], ["b", "a", NAME], {"a": 1, "b": 0})]
    return sweep_report.page(found, NAME, "qrels"), found


def answer(query: str, ranks: list[int], query_id: str, clips: str = "c") -> QueryReranked:
    """Make an answer whose results had ``ranks``."""
    results = [
        RerankedCandidate(f"{clips}{initial}", rank, 1 / rank, initial, 1.0, 0.5, 500 * rank, Status.RERANKED)
        for rank, initial in enumerate(ranks, start=1)
    ]
    return QueryReranked(
        query_id=query_id, query=query, engine="e", issued_at=AT, reranked_at=AT + dt.timedelta(milliseconds=900),
        model_id=NAME, alpha=0.4, depth=100, normalization="minmax", degraded=None, results=results,
    )  # fmt: skip


def piloted() -> tuple[Page, Any]:
    """A pilot that lacks clicks, and whose latency and overlap are too high."""
    pilot = Pilot(100, Clicks())
    for number in range(40):
        ranks = [2, 1, *range(3, 12)] if number % 8 == 0 else list(range(1, 12))
        pilot.add(answer(f"{NAME} {number}", ranks, f"q{number}"), served=True)
    clicks = {
        "clicks": 9, "queries": 5, "queries_in_sessions": 0, "sessions": 5, "unknown": 0,
        "estimates": [{"bias": "1/rank", "before": 0.5, "after": 0.51, "gain": 0.01, "low": -0.1, "high": 0.12,
                       "effective_clicks": 3.0}],
    }  # fmt: skip
    found = decision.decide({**pilot.data(), "clicks": clicks}, decision.Limits())
    return pilot_report.page(found), found


def audited() -> tuple[Page, Any]:
    """An audit that finds a shift away from the candidates."""
    known = Catalogue()
    for number in range(12):
        known.put(f"c{number}", {"language": "ja" if number % 3 == 0 else f"en {NAME[:40]}"})
    audit = Audit(known, ["language"], top=5, most=5)
    random = np.random.default_rng(2)
    for number in range(60):
        before = [f"c{each}" for each in random.permutation(12)]
        after = sorted(before, key=lambda clip: (int(clip[1:]) % 3 == 0, clip))
        audit.add([Lists(f"query {number}", before, after)])
    found = verdict.decide({**audit.data(), "left_out": {"replayed": 1}, "passed_over": ["colour"]})
    return audit_report.page(found), found


def probed() -> tuple[Page, Any]:
    """Probes of a model that knows objects only."""
    random = np.random.default_rng(3)
    scored = []
    for kind in probes.KINDS:
        for _ in range(40):
            right = kind == probes.CONTROL or random.random() < 0.5
            ruled = np.array([0.0, 1.0]) if kind in ("no", "without") else None
            scores = np.array([[1.0, 0.0], [0.0, 1.0] if right else [1.0, 0.0]])
            scored.append(probes.Scored(probes.Probe(kind, ("plain", f"{kind} {NAME}")), scores, ruled))
    found = probe_report.data(scored, model_id=NAME, seed=3, weight=0.5)
    return probe_report.page(found), found


def worded() -> tuple[Page, Any]:
    """Pairs of queries of which some differ, some do not, and some are refused a verdict."""
    pairs = [*read_pairs(STARTER)[:5], WordPair("x" * 40, f"a {NAME}", f"the {NAME}")]
    random = np.random.default_rng(5)
    first = random.normal(0.2, 0.03, (len(pairs), 300))
    second = first + random.normal(0, 0.01, first.shape)
    second[::2] += 0.02
    plain = np.stack([first[:, :50], second[:, :50]])
    masked = np.stack([plain] * 3)
    masked[:, 1, 2] -= 0.03
    clips = (*(f"c{number}" for number in range(299)), NAME)
    found = decide(pairs, Scored(clips, np.stack([first, second])), Sensitivity(plain, masked, 1), top=10, seed=1)
    return words_report.page(found, NAME), found


def matched() -> tuple[Page, Any]:
    """A calibration of few lists, and what it says of lists that it has not seen."""
    random = np.random.default_rng(7)
    percentiles = random.random(80)
    relevant = random.random(80) < percentiles
    lists = matching.Lists(tuple(f"t{number}" for number in range(80)), percentiles, random.random(80), relevant, 3, 2)
    fitted = bank(matching.calibrate(percentiles, relevant, "max"), model_id=NAME)
    found = match_report.data(
        fitted, seed=1, lists=lists, probabilities=matching.unseen(percentiles, relevant, folds=5)
    )
    return match_report.page(found, NAME, NAME), found


EVALUATION: dict[str, Callable[[], tuple[Page, Any]]] = {
    "run": evaluated,
    "comparison": compared,
    "runs": several,
    "sweep": swept,
    "pilot": piloted,
    "audit": audited,
    "probe": probed,
    "words": worded,
    "match": matched,
}
"""The reports of streamer.evaluation and what shares its page, by name."""
DEMO = "demo"
NAMES = (*EVALUATION, DEMO)


class OnePixel(FramePictures):
    """Pictures without a video."""

    def __init__(self) -> None:
        super().__init__({}, interval=0.5, max_frames=64)

    def at(self, clip_id: str, moment_ms: int) -> str:
        """Return the same picture of every clip."""
        assert clip_id
        assert moment_ms >= 0
        return PIXEL


def write(name: str, folder: Path) -> tuple[Path, Any]:
    """Write the page of this name into a folder; return its path and its data."""
    if name != DEMO:
        page, found = EVALUATION[name]()
        path = folder / f"{name}.html"
        path.write_text(render(page), encoding="utf-8")
        return path, found
    summary: dict[str, Any] = {
        "map_before": 0.41, "map_after": 0.9, "clips": 1234, "frames": 20_000, "queries": 2, "clips_per_s": 12.34,
        "events_per_s": 1234.5, "p50_ms": 7.77, "p95_ms": 15.04, "lag_records": 0,
    }  # fmt: skip
    queries = [
        Judged(answer(f"{NAME} {number}", [7, 6, 3, 1, 2, 5, 4], f"q{number}"), frozenset({"c7", "c3"}), before, 0.9)
        for number, before in enumerate((0.1, 0.95))
    ]
    path = demo_report.write(folder / "demo", summary=summary, queries=queries, pictures=OnePixel(), model=NAME)
    return path, None
