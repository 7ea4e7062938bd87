"""The commands that measure, on the small benchmark: replays to the last digit, sweeps, pilots, and their pages."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from streamer.cli import cli
from streamer.codec import JSON
from streamer.encoders import DEMO, load_encoder
from streamer.evaluation.measures import evaluate
from streamer.evaluation.questions import ReplayError
from streamer.evaluation.trec import read_qrels, read_run
from streamer.events import QueryReranked, RerankedCandidate, Status, now
from streamer.kafka.readers.request import RequestError
from streamer.store import open_existing, open_store
from tests.support import browser, small_avs
from tests.support.driver import RESULTS, Bus, Service, apply_topics
from tests.support.driver import Record as DriverRecord
from tests.support.footage import TINY_PALETTE, scene, write_video
from tests.support.recompute_scores import pooled, predicted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from playwright.sync_api import Browser

    from streamer.local_kafka.broker import LocalKafka
    from tests.support.small_avs import SmallBenchmark

ALPHA, DEPTH = 0.3, 25


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> SmallBenchmark:
    return small_avs.make(tmp_path_factory.mktemp("avs"))


def variables(benchmark: SmallBenchmark, **more: str) -> dict[str, str]:
    """Return an environment in which texts are computed alike everywhere: in float32, by one thread."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    settings = {"STREAMER_MODEL": DEMO, "STREAMER_STORE": benchmark.store, "STREAMER_DTYPE": "float32"}
    return {**inherited, **settings, "STREAMER_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "150", **more}


def streamer(settings: Mapping[str, str], *arguments: str | Path) -> str:
    """Run a command in this process, which has torch loaded already."""
    done = CliRunner().invoke(cli, [str(each) for each in arguments], env=settings)
    if done.exception is not None:
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def minmax(values: Any) -> Any:
    return (values - values.min()) / (values.max() - values.min())


def zscore(values: Any) -> Any:
    centred = values - values.mean()
    return centred / np.sqrt(np.mean(centred * centred))


def by_hand(
    benchmark: SmallBenchmark,
    run: Path,
    normalised: Callable[[Any], Any],
    *,
    impute: bool = True,
    pooling: str = "max",
) -> list[str]:
    """Rerank a run with numpy and fractions alone, from the stored vectors and the queries'."""
    lists: dict[str, list[tuple[float, str]]] = {}
    for line in run.read_text().splitlines():
        topic, _, shot, _, score, _ = line.split()
        lists.setdefault(topic, []).append((float(score), shot))
    texts = dict(line.split("\t") for line in (benchmark.folder / "topics.tsv").read_text().splitlines())
    encoder = load_encoder(DEMO, dtype="float32", threads=1, sides=["texts"])
    lines = []
    store = open_existing(benchmark.store, model_id=benchmark.model_id)
    for topic, results in lists.items():
        results.sort(reverse=True)
        query = np.rint(encoder.encode_texts([texts[topic]])[0].astype(np.float64) * 2**26) / 2**26
        with store.read([shot for _, shot in results[:DEPTH]]) as records:
            frames = [(record.matrix.astype(np.float64) @ query).tolist() if record else None for record in records]
        cosines = np.array([pooled(each, pooling) if each else np.nan for each in frames])
        scores = normalised(np.array([score for score, _ in results[:DEPTH]]))
        there = ~np.isnan(cosines)
        known = normalised(cosines[there])
        if impute:
            imputed = np.array(predicted(scores[there].tolist(), known.tolist(), scores[~there].tolist()))
            imputed = imputed.clip(0, 1) if normalised is minmax else imputed
            scores[~there] = ALPHA * scores[~there] + (1 - ALPHA) * imputed
        scores[there] = ALPHA * scores[there] + (1 - ALPHA) * known
        order = np.argsort(-scores, kind="stable")
        ranked = [(float(scores[each]), results[each][1]) for each in order]
        ranked += [(ranked[-1][0] - below, shot) for below, (_, shot) in enumerate(results[DEPTH:], start=1)]
        lines += [f"{topic} Q0 {shot} {rank} {score!r} streamer" for rank, (score, shot) in enumerate(ranked, 1)]
    store.close()
    return sorted(lines)


@pytest.fixture
def base_run(benchmark: SmallBenchmark, tmp_path: Path) -> Path:
    """An engine's run that has been through much."""
    run = tmp_path / "base.run"
    lines = (benchmark.folder / "base-B.run").read_text().splitlines()
    # Some candidates that nobody has embedded, and the file in an order of its own.
    lines += [f"{1501 + number} Q0 unknown-{number} 1 0.9 engine" for number in range(5)]
    run.write_text("\n".join(reversed(lines)) + "\n")
    return run


@pytest.mark.parametrize(("missing", "pooling"), [("own", "max"), ("impute", "softmax:0.1")])
def test_replays_offline_through_kafka_and_by_hand_agree_to_the_last_digit(
    benchmark: SmallBenchmark, kafka: LocalKafka, topic_prefix: str, base_run: Path, tmp_path: Path, missing: str,
    pooling: str,
) -> None:  # fmt: skip
    knobs = {
        "STREAMER_MISSING": missing,
        "STREAMER_POOLING": pooling,
        "STREAMER_ALPHA": str(ALPHA),
        "STREAMER_DEPTH": str(DEPTH),
        "STREAMER_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "STREAMER_TOPIC_PREFIX": topic_prefix,
    }
    own = variables(benchmark, **knobs)
    given: list[str | Path] = ["replay", "--run", base_run, "--topics", benchmark.folder / "topics.tsv", "--out"]
    told = streamer(own, *given, tmp_path / "offline")
    assert "5 not embedded" in told
    apply_topics(own, tmp_path)
    with Service("rerank", own, tmp_path) as service:
        service.await_ready(seconds=180)
        streamer(own, *given, tmp_path / "kafka", "--through-kafka", "--timeout", "120")
        with pytest.raises(ReplayError, match=f"the running reranker has alpha {ALPHA}, not 0.9"):
            streamer(own, *given, tmp_path / "other", "--through-kafka", "--alpha", "0.9")
    offline = (tmp_path / "offline").read_text()
    assert (tmp_path / "kafka").read_text() == offline
    expected = by_hand(benchmark, base_run, minmax, impute=missing == "impute", pooling=pooling)
    assert sorted(offline.splitlines()) == expected


@pytest.mark.parametrize(("normalization", "normalised"), [("zscore", zscore), ("none", lambda values: values)])
def test_other_normalisations_agree_with_numpy_too(
    benchmark: SmallBenchmark, base_run: Path, tmp_path: Path, normalization: str, normalised: Callable[[Any], Any]
) -> None:
    streamer(
        variables(benchmark, STREAMER_ALPHA=str(ALPHA), STREAMER_DEPTH=str(DEPTH)),
        "replay", "--run", base_run, "--topics", benchmark.folder / "topics.tsv", "--out", tmp_path / "offline",
        "--normalization", normalization,
    )  # fmt: skip
    offline = (tmp_path / "offline").read_text()
    assert sorted(offline.splitlines()) == by_hand(benchmark, base_run, normalised)


def test_a_replay_from_the_topic_equals_one_from_a_file_and_a_missing_reply_is_an_error(
    benchmark: SmallBenchmark, kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    own = variables(benchmark, STREAMER_BOOTSTRAP_SERVERS=kafka.bootstrap_servers, STREAMER_TOPIC_PREFIX=topic_prefix)
    events = small_avs.events(benchmark, "B")
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(events))
    apply_topics(own, tmp_path)
    Bus(kafka.bootstrap_servers, topic_prefix).publish(RESULTS, [DriverRecord(None, event) for event in events])
    streamer(own, "replay", "--from-topic", "--out", tmp_path / "topic")
    streamer(own, "replay", "--events", tmp_path / "events.jsonl", "--out", tmp_path / "file")
    streamer(
        own, "replay", "--run", benchmark.folder / "base-B.run", "--topics", benchmark.folder / "topics.tsv",
        "--out", tmp_path / "run",
    )  # fmt: skip
    read = {name: sorted((tmp_path / name).read_text().splitlines()) for name in ("topic", "file", "run")}
    assert read["topic"] == read["file"] == read["run"]
    with pytest.raises(RequestError, match=r"got no reply within 0.5 s: is a service running on"):
        streamer(own, "replay", "--from-topic", "--out", tmp_path / "none", "--through-kafka", "--timeout", "0.5")


def test_the_command_renders_embeds_and_measures_a_benchmark_whose_files_the_others_take(tmp_path: Path) -> None:
    folder = tmp_path / "avs"
    given: list[str | Path] = [
        "benchmark",
        "--model",
        "demo",
        "--out",
        folder,
        "--clips",
        "20",
        "--topics",
        "4",
        "--dtype",
        "float32",
        "--threads",
        "1",
    ]
    table = streamer(dict(os.environ), *given)
    results = json.loads((folder / "results.json").read_bytes())
    assert [engine["name"] for engine in results["engines"]] == ["A", "B", "C", "D", "E"]
    assert table == (folder / "report.md").read_text()
    for engine in results["engines"]:
        measured = json.loads(
            streamer(
                {}, "evaluate", "--run", folder / f"base-{engine['name']}.run", "--qrels", folder / "qrels",
                "--reranked", folder / f"reranked-{engine['name']}.run", "--json", "-",
            )
        )["comparison"]["infAP"]  # fmt: skip
        assert engine["infAP"] == {name: measured[name] for name in engine["infAP"]}
        assert f"| {engine['name']} | {measured['before']:.3f} | {measured['after']:.3f} |" in table
    again = CliRunner().invoke(cli, [str(each) for each in given])
    assert (again.exit_code, "is not empty" in again.output) == (2, True)


def test_on_the_small_benchmark_the_weaker_engines_gain_significantly(benchmark: SmallBenchmark) -> None:
    gains = [engine["infAP"] for engine in benchmark.results["engines"]]
    assert all(figures["gain"] > 0 and figures["randomization_p"] < 0.05 for figures in gains[:2])
    assert len(benchmark.results["verdict"]) > len(gains)


def test_the_probes_of_the_small_model_and_their_page(chromium: Browser, tmp_path: Path) -> None:
    given: list[str | Path] = ["probe", "--model", "demo", "--pairs", "16", "--dtype", "float32", "--threads", "1"]
    shown = streamer(dict(os.environ), *given, "--json", tmp_path / "json", "--html", tmp_path / "page.html")
    found = json.loads((tmp_path / "json").read_bytes())
    accuracy = {(each["probe"], each["query"]): each["accuracy"] for each in found["probes"]}
    assert accuracy["object", "as it is"] > 0.75
    assert accuracy["no", "as it is"] < accuracy["no", "without the word"]
    for each in found["probes"]:
        assert f"{each['accuracy']:.3f}" in shown
    with browser.opened(chromium, tmp_path / "page.html") as page:
        figures = browser.assert_figures_are(found, page)
        assert {"probes/0/accuracy", "probes/0/low", "rule/no/gained"} <= figures.keys()
        assert page.locator("figure svg").count() == 1


def test_an_audit_of_answers_whose_clips_are_decoded_anew_and_masked(chromium: Browser, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    clips = [f"clip-{number}" for number in range(4)]
    for clip, (shape, ground) in zip(clips[:3], TINY_PALETTE, strict=False):
        write_video(videos / f"{clip}.mp4", scene(10, shape=shape, ground=ground), 5)
    (videos / "clip-3.mp4").write_bytes(b"no video")
    encoder = load_encoder(DEMO, sides=["texts"])
    at = now()

    def answer(number: int, model_id: str) -> bytes:
        order = clips if number % 3 else clips[::-1]
        results = [
            RerankedCandidate(clip, rank, 0.5, clips.index(clip) + 1, 1.0, 0.1 * (4 - rank), 500, Status.RERANKED)
            for rank, clip in enumerate(order, start=1)
        ]
        return JSON.encode(
            QueryReranked(
                query_id=f"q{number}", query=f"query {number}", engine="e", issued_at=at, reranked_at=at,
                model_id=model_id, alpha=0.0, depth=100, normalization="minmax", degraded=None, results=results,
            )
        )  # fmt: skip

    (tmp_path / "attributes.csv").write_text("clip_id,side\n" + "".join(f"{clip},{clip[-1]}\n" for clip in clips))
    settings = {**os.environ, "STREAMER_MODEL": DEMO, "STREAMER_DTYPE": "float32", "COLUMNS": "150"}
    answers = tmp_path / "answers.jsonl"
    given: list[str | Path] = ["audit", "--answers", answers, "--attributes", tmp_path / "attributes.csv", "--top", "2"]
    answers.write_bytes(b"".join(answer(number, encoder.model_id) + b"\n" for number in range(40)))
    files: list[str | Path] = ["--json", tmp_path / "audit.json", "--html", tmp_path / "audit.html"]
    streamer(settings, *given, "--videos", videos, *files)
    found = json.loads((tmp_path / "audit.json").read_bytes())
    assert found["masking"] == {"queries": 40, "clips": 3, "failed": 1, "share": 0.75}
    groups = found["attributes"][0]["groups"]
    assert [each["group"] for each in groups] == ["0", "1", "2", "3", "(unknown)"]
    # The scores are those of the small model by now, in which some mask changes some order of so many.
    assert max(each["masking"] for each in groups) > 0
    assert sum(each["masking"] for each in groups[4:]) == 0
    refused = [each["masking"] >= abs(each["change"]) for each in (*found["shifts"], *found["refused"])]
    assert refused == [False] * len(found["shifts"]) + [True] * len(found["refused"])
    with browser.opened(chromium, tmp_path / "audit.html") as page:
        figures = browser.assert_figures_are(found, page)
        assert {"masking/clips", "attributes/0/groups/0/masking"} <= figures.keys()
    answers.write_bytes(answer(0, "another model") + b"\n")
    done = CliRunner().invoke(cli, [str(each) for each in (*given, "--videos", videos)], env=settings)
    assert (done.exit_code, "the answers are of the model another model" in done.output) == (1, True)


def test_queries_that_differ_in_one_word_are_asked_of_the_store_and_of_masked_frames(
    benchmark: SmallBenchmark, chromium: Browser, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, (shape, ground) in enumerate(TINY_PALETTE[:3]):
        write_video(videos / f"clip-{number:04d}.mp4", scene(10, shape=shape, ground=ground), 5)
    (videos / "clip-0003.mp4").write_bytes(b"no video")
    (videos / "unknown.mp4").write_bytes(b"of no clip")
    out: list[str | Path] = ["--json", tmp_path / "words.json", "--html", tmp_path / "words.html"]
    shown = streamer(variables(benchmark), "probe", "--words", "starter", "--videos", videos, "--top", "5", *out)
    found = json.loads((tmp_path / "words.json").read_bytes())
    assert found["sentence"] in " ".join(shown.split())
    assert (found["clips"], found["sample"], found["not_decoded"]) == (small_avs.CLIPS, 3, 1)
    encoder = load_encoder(DEMO, dtype="float32", threads=1, sides=["texts"])
    pair = found["pairs"][0]
    store = open_existing(benchmark.store, model_id=benchmark.model_id)
    clips = sorted(store.clip_ids())
    one, other = (
        store.score(clips, encoder.encode_texts([pair[key]])[0], None).frame.cosines for key in ("first", "second")
    )
    store.close()
    assert pair["shift"] == pytest.approx(float((other - one).mean()), abs=1e-6)
    assert all(each["shift_sensitivity"] > 0 for each in found["pairs"])
    with browser.opened(chromium, tmp_path / "words.html") as page:
        figures = browser.assert_figures_are(found, page)
        assert {"pairs/0/shift", "pairs/23/overlap_sensitivity", "sentence", "sample"} <= figures.keys()


def files(benchmark: SmallBenchmark, engine: str = "B") -> list[str | Path]:
    folder = benchmark.folder
    return ["--run", folder / f"base-{engine}.run", "--topics", folder / "topics.tsv", "--qrels", folder / "qrels"]


def test_a_sweeps_points_are_replays_and_its_page_shows_its_json(
    benchmark: SmallBenchmark, chromium: Browser, tmp_path: Path
) -> None:
    own = variables(benchmark)
    out: list[str | Path] = ["--json", tmp_path / "sweep.json", "--html", tmp_path / "sweep.html"]
    grid = ["--depths", "10,25", "--intervals", "1", "--precisions", "int8", "--measures", "infAP,nDCG@10",
            "--missing", "own,impute", "--poolings", "max,softmax:.1"]  # fmt: skip
    streamer(own, "sweep", *files(benchmark), *grid, *out)
    found = json.loads((tmp_path / "sweep.json").read_bytes())
    assert len(found["points"]) == 11 * 2 * 3 * 4 * 2 * 2
    assert [each["value"] for each in found["alternatives"]] == ["impute", "softmax:0.1"]
    given: list[str | Path] = ["--run", benchmark.folder / "base-B.run", "--topics", benchmark.folder / "topics.tsv"]
    for alpha, depth, how, missing, pooling in (
        (0.4, 25, "minmax", "own", "max"), (0.7, 10, "zscore", "impute", "softmax:0.1"),
    ):  # fmt: skip
        knobs = ["--alpha", str(alpha), "--depth", str(depth), "--normalization", how]
        knobs += ["--missing", missing, "--pooling", pooling]
        streamer(own, "replay", *given, "--out", tmp_path / "run", *knobs)
        measured = evaluate(read_run(tmp_path / "run"), read_qrels(benchmark.folder / "qrels")).mean["infAP"]
        assert found["other_measures"]["nDCG@10"]["best"]["nDCG@10"] >= found["other_measures"]["nDCG@10"]["base"]
        setting = {"frame_interval": "stored", "precision": "stored", "depth": depth, "alpha": alpha,
                   "normalization": how, "missing": missing, "pooling": pooling}  # fmt: skip
        (point,) = [each for each in found["points"] if setting.items() <= each.items()]
        assert point["infAP"] == pytest.approx(measured, rel=1e-12)
    stored, derived = (
        next(each for each in found["points"] if (each["frame_interval"], each["precision"]) == variant)
        for variant in (("stored", "stored"), (1.0, "int8"))
    )
    assert derived["frames_a_clip"] == stored["frames_a_clip"] / 2 == small_avs.SCENES
    assert derived["bytes_a_clip"] < stored["bytes_a_clip"] / 3
    with browser.opened(chromium, tmp_path / "sweep.html") as page:
        figures = browser.assert_figures_are(found, page)
        assert {"base", "best/gain", "cross_validation/best/low", "trade_off/0/ms", "visible/0/gain"} <= figures.keys()
        assert "other_measures/nDCG@10/cross_validation/best/says" in figures
        assert {"alternatives/1/low", "recommended/pooling"} <= figures.keys()
        point = found[found["use"] or "best"]
        assert bool(found["examples"]) == (point["frame_interval"] == point["precision"] == "stored")
        assert page.locator("figure svg").count() == 4


def test_a_sweep_over_several_models_and_one_that_has_embedded_nothing(
    benchmark: SmallBenchmark, tmp_path: Path
) -> None:
    one = ["--alphas", "0.4", "--depths", "10", "--normalizations", "minmax", "--json", "-"]
    both = streamer(variables(benchmark), "sweep", *files(benchmark), *one, "--also-model", DEMO)
    first, second = json.loads(both)["points"]
    assert (
        (first["model"], first["infAP"]) == (second["model"], second["infAP"]) == (benchmark.model_id, first["infAP"])
    )
    empty = f"lmdb:{tmp_path / 'empty'}"
    open_store(empty, model_id="another", dim=4).close()
    with pytest.raises(ReplayError, match=f"none of the candidates is embedded by {benchmark.model_id}"):
        streamer(variables(benchmark, STREAMER_STORE=empty), "sweep", *files(benchmark), *one)


def test_a_pilot_on_a_topic_with_clicks_and_its_page(
    benchmark: SmallBenchmark, kafka: LocalKafka, topic_prefix: str, chromium: Browser, tmp_path: Path
) -> None:
    own = variables(benchmark, STREAMER_BOOTSTRAP_SERVERS=kafka.bootstrap_servers, STREAMER_TOPIC_PREFIX=topic_prefix)
    apply_topics(own, tmp_path)
    events = small_avs.events(benchmark, "B")
    Bus(kafka.bootstrap_servers, topic_prefix).publish(RESULTS, [DriverRecord(None, event) for event in events])
    # People click on what is relevant.
    judged = [line.split() for line in (benchmark.folder / "qrels").read_text().splitlines()]
    clicks = [
        {"query_id": topic, "clip_id": clip, "clicked_at": "2026-11-26T00:00:00Z"}
        for topic, _, clip, _, rel in judged
        if rel == "1"
    ]
    (tmp_path / "clicks.jsonl").write_text("\n".join(map(json.dumps, clicks)))
    streamer(
        own, "pilot", "--from-topic", "--clicks", tmp_path / "clicks.jsonl", "--json", tmp_path / "pilot.json",
        "--html", tmp_path / "pilot.html",
    )  # fmt: skip
    found = json.loads((tmp_path / "pilot.json").read_bytes())
    assert (found["queries"], found["decision"]) == (len(events), "collect more")
    assert [each["gain"] > 0 for each in found["clicks"]["estimates"][:2]] == [True, True]
    assert any("only a running service knows" in each for each in found["missing"])
    assert found["coverage"]["not_embedded_share"] == 0
    with browser.opened(chromium, tmp_path / "pilot.html") as page:
        figures = browser.assert_figures_are(found, page)
        shown = {"decision", "order/overlap", "clicks/estimates/0/gain", "criteria/0/met", "missing/0"}
        assert shown <= figures.keys()
        assert "position bias" in page.inner_text("body")
