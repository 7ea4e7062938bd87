"""The benchmarks' own arithmetic: figures, targets, reports, and the input events of the processes under test."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from bench import __main__ as harness
from bench.cases.hot_path import in_process
from bench.cases.reranking_latency import figures
from bench.harness.baseline import answer
from bench.harness.contestants import Drain, Sample
from bench.harness.machine import about
from bench.harness.plots import draw
from bench.harness.report import document, spread, summary
from bench.harness.targets import TARGETS, Figure, Target
from bench.harness.workload import Setup, candidates, clips, fill, queries
from streamer.encoders import DEMO, load_encoder
from streamer.local_kafka.broker import LocalKafka
from streamer.store import open_store
from tests.support.driver import validator


def results(benchmark: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {**about(), "benchmarks": {benchmark: {"seconds": 1.0, "figures": figures}}}


def test_a_figure_is_a_median_with_its_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert Figure.of(spread([3.0, 1.0, 2.0])).text() == "2 [1 .. 3]"
    assert Figure.of(0.99987).text() == "0.99987"
    assert Figure.of(1234.5).text() == "1234"


@pytest.mark.parametrize(("value", "met"), [(2.9, True), (3.0, True), (3.1, False)])
def test_a_target_is_met_by_the_median(value: float, met: bool) -> None:
    found = results("core", {"float16": {"ratio": spread([0.0, value, 99.0])}})
    target = Target("what", "core", ("float16", "ratio"), at_most=3)
    assert target.is_met(found) is met
    assert Target("what", "core", ("float16", "ratio"), at_least=3).is_met(found) is (value >= 3)
    assert Target("what", "core", ("float16", "ratio")).is_met(found) is None


def test_a_missing_figure_meets_no_target() -> None:
    found = results("core", {"float16": 1.0})
    for path in (("int8",), ("float16", "ratio")):
        target = Target("what", "core", path, at_most=3)
        assert target.figure(found) is None
        assert target.is_met(found) is None


def test_the_report_shows_targets_errors_and_figures(tmp_path: Path) -> None:
    found = results("reranking_throughput", {"share_of_ideal": spread([0.6, 0.65]), "events_per_s": spread([1500.0])})
    found["benchmarks"]["core"] = {"seconds": 2.0, "error": "exit code 1"}
    found["benchmarks"]["hot_path"] = {"seconds": 2.0, "figures": {"us_a_query": {"decode": spread([31.0])}}}
    table = summary(found)
    assert "| 0.625 [0.6 .. 0.65] | at least 0.7 | **no** |" in table
    assert "not measured | at most 3 |" in table
    assert "| decode | 31 |" in table
    assert "Failed: exit code 1" in document(found)
    assert "| events_per_s | 1500 [1500 .. 1500] |" in document(found)
    assert [path.name for path in draw(found, tmp_path)] == ["targets.svg", "throughput.svg"]


def test_a_benchmark_that_fails_or_hangs_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere" / "bench"
    cases = package / "cases"
    cases.mkdir(parents=True)
    for folder in (package, cases):
        (folder / "__init__.py").touch()
    (package / "harness").symlink_to(Path(harness.__file__).with_name("harness"))
    (cases / "good.py").write_text("def measure(quick):\n    return {'quick': quick}\n")
    (cases / "bad.py").write_text("def measure(quick):\n    raise ValueError('nothing to measure')\n")
    (cases / "hangs.py").write_text(
        "import pathlib, subprocess, time\n"
        "def measure(quick):\n"
        "    pathlib.Path('child').write_text(str(subprocess.Popen(['sleep', '60']).pid))\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(harness, "BENCHMARKS", {"bad": 30, "hangs": 6, "good": 30})
    monkeypatch.setattr(harness, "_PATIENCE", 1)
    monkeypatch.setattr(harness, "class_path", list)
    done = CliRunner().invoke(harness.main, ["--quick", "--out", str(tmp_path / "report")])
    assert done.exit_code == 1
    assert "nothing to measure" in done.output
    found = json.loads((tmp_path / "report/results.json").read_bytes())["benchmarks"]
    assert found["good"]["figures"] == {"quick": True}
    assert found["bad"]["error"] == "exit code 1"
    assert found["hangs"]["error"] == "exceeded 6 s"
    child = int((package.parent / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_benchmarks_without_a_broker_run_at_a_tiny_size_and_are_reported(tmp_path: Path) -> None:
    """They are run by hand, now and then: what breaks them would be noticed only then."""
    names = ["core", "text", "embedding", "near_duplicates"]
    done = CliRunner().invoke(harness.main, ["--quick", "--out", str(tmp_path), *names])
    found = json.loads((tmp_path / "results.json").read_bytes())["benchmarks"]
    assert {name: found[name].get("error") for name in names} == dict.fromkeys(names), done.output
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.glob("*.svg")} == {"targets.svg"}


def test_each_target_belongs_to_a_benchmark() -> None:
    assert {target.benchmark for target in TARGETS} <= harness.BENCHMARKS.keys()


def test_contestants_are_given_valid_events_and_the_hand_written_loop_gives_valid_answers() -> None:
    [record] = queries(1, 500)
    validator("query.results").validate(record.event)
    assert len(record.event["results"]) == 100
    assert record.value is not None
    answered = json.loads(answer(record.value))
    validator("query.reranked").validate(answered)
    asked = {each["clip_id"] for each in record.event["results"]}
    assert {each["clip_id"] for each in answered["results"]} == asked == set(candidates(0, 500))


def test_clips_have_1_to_64_frames_and_16_in_the_mean() -> None:
    counts = np.array([len(clip.vectors) for clip in clips(2_000, 8)])
    assert (counts.min(), counts.max()) == (1, 64)
    assert 14 < counts.mean() < 18


def test_a_drain_is_timed_between_a_tenth_and_nine_tenths() -> None:
    samples = [
        Sample(0.0, 0, 0.0, 0.0), Sample(2.0, 10, 1.0, 0.5), Sample(3.0, 50, 1.5, 0.7), Sample(4.0, 90, 2.0, 1.0),
        Sample(9.0, 100, 9.0, 9.0),
    ]  # fmt: skip
    drain = Drain(100, samples)
    assert drain.events_per_second == 40
    assert drain.events_per_cpu_second == 80
    assert (drain.cores, drain.broker_cores) == (0.5, 0.25)
    assert Drain(100, [samples[0], samples[-1]]).events_per_second == pytest.approx(100 / 9)


def test_the_hot_path_is_that_of_the_service_and_adds_up(tmp_path: Path) -> None:
    encoder = load_encoder(DEMO, dtype="float32")
    store = open_store(f"lmdb:{tmp_path}", model_id=encoder.model_id, dim=encoder.dim)
    fill(store, 200, encoder.dim)
    store.close()
    setup = Setup(LocalKafka(), tmp_path, {}, encoder, 200, tmp_path)
    began = time.perf_counter()
    [steps], outputs = in_process(setup, 1, 64)
    passed_us = 1e6 * (time.perf_counter() - began)
    assert list(steps) == ["decode", "text", "fetch", "score", "blend", "encode", "answer"]
    assert min(steps.values()) > 0
    assert 64 * sum(steps.values()) < passed_us / 2  # two more passes are not in the figures
    events = [json.loads(output.value or b"") for output in outputs]
    assert len(events) == 64
    validator("query.reranked").validate(events[0])
    assert {each["status"] for each in events[0]["results"]} == {"reranked"}


def test_latency_ratios_are_of_the_same_round() -> None:
    rounds = {"loop": [[2.0, 2.0], [4.0, 4.0]], "service": [[3.0, 3.0], [6.0, 6.0]], "uncached": [[9.0], [12.0]]}
    found = figures(rounds, [2.0, 2.0], 20.0)
    assert found["p50_ratio"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert found["uncached_p50_to_allowed_ratio"]["median"] == pytest.approx((9 / 6 + 12 / 9) / 2)


def test_the_command_names_the_benchmarks_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nonsense"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "unknown benchmark nonsense" in done.stderr
    assert "reranking_latency" in done.stderr
