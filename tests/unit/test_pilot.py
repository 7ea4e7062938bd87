"""The pilot's figures on lists whose figures are known, and what they decide."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.codec import JSON
from streamer.evaluation.pilot import Clicks, Pilot, rank_biased_overlap
from streamer.evaluation.pilot_report import COLLECT, GO, STOP, Limits, decide
from streamer.evaluation.questions import ReplayError
from streamer.events import Degraded, QueryReranked, RerankedCandidate, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AT = dt.datetime(2026, 11, 26, tzinfo=dt.UTC)


def answer(
    ranks: Sequence[int],
    *,
    query_id: str = "q",
    degraded: Degraded | None = None,
    without_frames: int = 0,
    ms: int = 40,
) -> QueryReranked:
    """Make an answer whose results had ``ranks``; the last ones may have no frames."""
    count = len(ranks)
    results = [
        RerankedCandidate(
            f"c{initial}", rank, 1.0, initial, 1.0, 0.5, 500 * rank,
            Status.NOT_EMBEDDED if rank > count - without_frames else Status.RERANKED,
        )
        for rank, initial in enumerate(ranks, start=1)
    ]  # fmt: skip
    return QueryReranked(
        query_id=query_id, query="q", engine="e", issued_at=AT, reranked_at=AT + dt.timedelta(milliseconds=ms),
        model_id="m", alpha=0.4, depth=100, normalization="minmax", degraded=degraded, results=results,
    )  # fmt: skip


def plain_overlap(ranks: Sequence[int]) -> float:
    """Compute RBO_EXT as its equation is written."""
    k, p = len(ranks), 0.9
    shared = [len(set(range(1, d + 1)) & set(ranks[:d])) for d in range(1, k + 1)]
    total = sum((1 - p) / p * shared[d - 1] / d * p**d for d in range(1, k + 1))
    return total + shared[-1] / k * p**k


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_rank_biased_overlap_equals_its_defining_equation(count: int, seed: int) -> None:
    ranks = (np.random.default_rng(seed).permutation(count + 5) + 1)[:count]
    assert rank_biased_overlap(ranks) == pytest.approx(plain_overlap(ranks.tolist()))


def test_the_pilots_figures_of_known_lists_are_exact() -> None:
    pilot = Pilot(100, Clicks())
    pilot.add(answer([1, 2, 3, 4]), served=True)
    pilot.add(answer([4, 3, 2, 1], without_frames=2, ms=60), served=True)
    pilot.add(answer([1, 2], degraded=Degraded.STORE_UNAVAILABLE), served=True)
    found = pilot.data()
    assert found["queries"] == 3
    assert found["coverage"] == {"candidates": 8, "not_embedded": 2, "not_embedded_share": 0.25}
    assert found["order"]["overlap"] == pytest.approx((1 + plain_overlap([4, 3, 2, 1])) / 2)
    assert found["order"]["tau"] == pytest.approx(0)
    assert (found["order"]["moved_in_first"], found["order"]["new_in_first"]) == (0.5, 0)
    assert found["order"]["later_moments"] == 0.5
    assert found["service"]["degraded"] == {"store_unavailable": 1}
    assert found["service"]["degraded_share"] == pytest.approx(1 / 3)
    assert found["service"]["p50_ms"] == 40
    assert found["clicks"] is None


def test_the_pilot_compares_the_mrr_of_clicks_before_and_after() -> None:
    clicks = Clicks()
    for clip in ("c4", "c3", "elsewhere"):
        clicks.add(b'{"query_id": "q", "clip_id": "%s", "clicked_at": "2026-11-26T00:00:00Z"}' % clip.encode(), "here")
    clicks.add(b'{"query_id": "p", "clip_id": "c1", "clicked_at": "2026-11-26T00:00:00Z", "user": 1}', "here")
    pilot = Pilot(100, clicks)
    pilot.add(answer([4, 3, 2, 1]), served=False)
    pilot.add(answer([1, 2], query_id="p"), served=False)
    found = pilot.data()
    assert found["service"]["degraded_share"] is None
    assert (found["clicks"]["clicks"], found["clicks"]["queries"], found["clicks"]["unknown"]) == (4, 2, 1)
    mrr, first = found["clicks"]["measures"]["MRR"], found["clicks"]["measures"]["hit@1"]
    assert (mrr["before"], mrr["after"]) == (pytest.approx((1 / 3 + 1) / 2), 1)
    assert (first["before"], first["after"]) == (0.5, 1)
    assert mrr["gain_low"] < mrr["gain"] < mrr["gain_high"]


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"query_id": "q", "clip_id": "c", "clicked_at": "yesterday"}'])
def test_what_is_no_click_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clicks.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(ReplayError, match=r"clicks.jsonl:2: expected a click \(query_id"):
        Clicks().read(path)


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "queries": 5_000,
        "coverage": {"not_embedded_share": 0.02},
        "order": {"overlap": 0.6},
        "service": {"degraded_share": 0.001, "p95_ms": 90.0},
        "clicks": {"queries": 400, "measures": {"MRR": {"gain_low": 0.01}}},
    } | changes


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        ({}, GO),
        ({"queries": 10}, COLLECT),
        ({"clicks": None}, COLLECT),
        ({"coverage": {"not_embedded_share": 0.4}}, STOP),
        ({"service": {"degraded_share": 0.2, "p95_ms": 90.0}}, STOP),
        ({"service": {"degraded_share": None, "p95_ms": None}}, COLLECT),
        ({"order": {"overlap": 0.999}}, STOP),
        ({"clicks": {"queries": 400, "measures": {"MRR": {"gain_low": -0.2}}}}, STOP),
    ],
)
def test_the_pilots_decision_follows_from_its_figures(changes: dict[str, Any], decision: str) -> None:
    assert decide(figures(**changes), Limits())["decision"] == decision


@pytest.mark.parametrize("arguments", [[], ["--from-topic", "--answers-from-topic"]])
def test_pilot_requires_exactly_one_source_of_events(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, ["pilot", *arguments])
    assert done.exit_code == 2
    assert "give exactly one of --events, --from-topic, --answers and --answers-from-topic" in done.output


def test_answers_of_a_file_are_reported_with_their_latency(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        b"\n".join(JSON.encode(answer([2, 1], query_id=f"q{number}", ms=10 * number)) for number in range(1, 6))
    )
    done = CliRunner().invoke(cli, ["pilot", "--answers", str(path), "--limit", "4", "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["queries"], found["service"]["p50_ms"]) == (4, 25)
    assert [each["met"] for each in found["criteria"]][3:5] == ["yes", "yes"]
