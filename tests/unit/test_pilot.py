"""The pilot's figures on lists whose figures are known, and what they decide."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.codec import JSON
from streamer.evaluation.overlap import rank_biased_overlap
from streamer.evaluation.pilot.clicks import Clicks
from streamer.evaluation.pilot.decision import COLLECT, READY, STOP, Limits, decide
from streamer.evaluation.pilot.figures import Pilot
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
    pilot.add(answer([4, 3, 2, 1], query_id="r", without_frames=2, ms=60), served=True)
    pilot.add(answer([1, 2], query_id="s", degraded=Degraded.STORE_UNAVAILABLE), served=True)
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


def click(query_id: str, clip_id: str, **more: str) -> bytes:
    return json.dumps({"query_id": query_id, "clip_id": clip_id, "clicked_at": "2026-11-26T00:00:00Z", **more}).encode()


def test_a_click_counts_the_more_the_less_its_rank_is_examined() -> None:
    clicks = Clicks()
    for clip in ("c4", "c3", "elsewhere"):
        clicks.add(click("q", clip, session_id="s"), "here")
    clicks.add(click("p", "c1", user="1"), "here")
    pilot = Pilot(100, clicks)
    pilot.add(answer([4, 3, 2, 1]), served=False)
    pilot.add(answer([1, 2], query_id="p"), served=False)
    found = pilot.data()
    assert found["service"]["degraded_share"] is None
    counted = {key: found["clicks"][key] for key in ("clicks", "queries", "queries_in_sessions", "sessions", "unknown")}
    assert counted == {"clicks": 4, "queries": 2, "queries_in_sessions": 1, "sessions": 2, "unknown": 1}
    by_rank, by_root = found["clicks"]["estimates"]
    assert (by_rank["bias"], by_root["bias"]) == ("1/rank", "1/sqrt(rank)")
    # Ranks 4, 3 and 1 come to 1, 2 and 1.
    for found_estimate, weights in ((by_rank, [4.0, 3.0, 1.0]), (by_root, [2.0, 3**0.5, 1.0])):
        before = np.average(1 / np.log2([5, 4, 2]), weights=weights)
        after = np.average(1 / np.log2([2, 3, 2]), weights=weights)
        assert found_estimate["before"] == pytest.approx(before)
        assert found_estimate["after"] == pytest.approx(after)
        assert found_estimate["gain"] == pytest.approx(after - before)
        assert found_estimate["effective_clicks"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))


def test_replayed_and_repeated_queries_are_left_out_and_counted() -> None:
    pilot = Pilot(100, Clicks())
    for query_id in ("q", "q", "replay-0a1b2c3d.q", "replay-of-the-week"):
        pilot.add(answer([2, 1], query_id=query_id), served=True)
    found = pilot.data()
    assert (found["queries"], found["left_out"]) == (2, {"replayed": 1, "repeated": 1})


def test_lists_that_cannot_change_are_left_out_of_the_overlap_and_counted() -> None:
    pilot = Pilot(100, Clicks())
    for number, each in enumerate((answer([1]), answer([1, 2], without_frames=2), answer([]), answer([2, 1]))):
        pilot.add(msgspec.structs.replace(each, query_id=f"q{number}"), served=False)
    order = pilot.data()["order"]
    assert (order["compared"], order["unchangeable"]) == (1, 3)
    assert order["overlap"] == pytest.approx(plain_overlap([2, 1]))


def test_latency_is_that_of_live_answers_whose_clocks_agree() -> None:
    week, pilot = 7 * 24 * 3_600_000, Pilot(100, Clicks())
    for number, ms in enumerate([*range(1, 100), week, -5]):
        pilot.add(answer([2, 1], query_id=f"q{number}", ms=ms), served=True)
    service = pilot.data()["service"]
    assert (service["live"], service["late"], service["negative"], service["p50_ms"]) == (99, 1, 1, 50)


def test_no_latency_is_known_where_clocks_disagree() -> None:
    pilot = Pilot(100, Clicks())
    for number, ms in enumerate([40] * 9 + [-5]):
        pilot.add(answer([2, 1], query_id=f"q{number}", ms=ms), served=True)
    service = pilot.data()["service"]
    assert (service["negative"], service["p50_ms"], service["degraded_share"]) == (1, None, 0)


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"query_id": "q", "clip_id": "c", "clicked_at": "yesterday"}'])
def test_what_is_no_click_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clicks.jsonl"
    path.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(ReplayError, match=r"clicks.jsonl:2: expected a click \(query_id"):
        Clicks().read(path)


def estimate(low: float, high: float, *, bias: str = "1/rank", effective: float = 300.0) -> dict[str, Any]:
    return {"bias": bias, "gain": (low + high) / 2, "low": low, "high": high, "effective_clicks": effective}


def clicked(*estimates: dict[str, Any], queries: int = 400) -> dict[str, Any]:
    return {"queries": queries, "estimates": list(estimates)}


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "queries": 5_000,
        "coverage": {"not_embedded_share": 0.02},
        "order": {"overlap": 0.6},
        "service": {"degraded_share": 0.001, "p95_ms": 90.0},
        "clicks": clicked(estimate(0.01, 0.05), estimate(0.02, 0.04)),
    } | changes


GAIN, LOSS, NOTHING = estimate(0.01, 0.05), estimate(-0.09, -0.02), estimate(-0.02, 0.03)


@pytest.mark.parametrize(
    ("changes", "decision", "missing"),
    [
        ({}, READY, ""),
        ({"clicks": clicked(LOSS, LOSS)}, STOP, ""),
        ({"clicks": clicked(GAIN, NOTHING)}, COLLECT, "queries with clicks would decide"),
        ({"clicks": clicked(LOSS, NOTHING)}, COLLECT, "gain or loss depends on the position bias"),
        ({"clicks": clicked(GAIN, LOSS)}, COLLECT, "gain or loss depends on the position bias"),
        ({"clicks": clicked(estimate(-0.009, -0.001))}, COLLECT, "too close to none"),
        ({"clicks": clicked(LOSS, queries=100)}, COLLECT, "queries with clicks: record more clicks"),
        ({"clicks": clicked(estimate(0.01, 0.05, effective=5.0))}, COLLECT, "effective clicks: record more"),
        ({"queries": 10}, COLLECT, "queries: record more queries"),
        ({"clicks": None}, COLLECT, "quality is not known without clicks"),
        ({"coverage": {"not_embedded_share": 0.4}}, COLLECT, "wait for the backfill"),
        ({"service": {"degraded_share": 0.2, "p95_ms": 90.0}}, COLLECT, "look at the store"),
        ({"service": {"degraded_share": None, "p95_ms": None}}, COLLECT, "only a running service knows"),
        ({"order": {"overlap": 0.999}}, COLLECT, "reranking changes nothing visible"),
        ({"order": {"overlap": 0.999}, "clicks": clicked(LOSS, LOSS)}, STOP, ""),
    ],
)
def test_the_pilots_decision_follows_from_its_figures(changes: dict[str, Any], decision: str, missing: str) -> None:
    decided = decide(figures(**changes), Limits())
    assert decided["decision"] == decision
    assert missing in " ".join(decided["missing"])
    assert bool(missing) == bool(decided["missing"])


def test_the_number_of_clicks_that_would_decide_follows_from_the_interval() -> None:
    # Four times the queries halve an interval, which then lies above 0.
    half_too_wide = clicked(estimate(-0.02, 0.06), estimate(-0.01, 0.05))
    assert decide(figures(clicks=half_too_wide), Limits())["clicks"]["needed_queries"] == 1_600


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
    assert [each["met"] for each in found["criteria"]][5:] == ["yes", "yes"]


def test_an_offline_pilot_says_what_only_a_running_service_knows() -> None:
    pilot = Pilot(100, Clicks())
    pilot.add(answer([2, 1]), served=False)
    missing = decide(pilot.data(), Limits())["missing"]
    assert [each.partition(":")[0] for each in missing] == [
        "queries", "queries with clicks", "effective clicks", "share of degraded queries", "latency p95 (ms)",
    ]  # fmt: skip
