"""``streamer evaluate`` as a user runs it, and its page as a browser shows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from streamer import cli
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run, write_qrels, write_run
from tests.support import browser
from tests.support.brute_infap import brute_infap
from tests.support.brute_infndcg import brute_infndcg

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

HOSTILE = "</script><b>1&amp;~/$x^"
TOPICS = [*(str(1501 + number) for number in range(12)), HOSTILE]


def scores(seed: int, topic: str, boost: float) -> dict[str, float]:
    random = np.random.default_rng([seed, TOPICS.index(topic)])
    return {f"shot{shot}_{shot % 5}": float(random.random() + boost * (shot < 20)) for shot in range(200)}


def pool(topic: str) -> dict[str, tuple[str, int]]:
    random = np.random.default_rng([9, TOPICS.index(topic)])
    return {
        f"shot{shot}_{shot % 5}": (str(1 + shot // 50), int(shot < 20) if random.random() < 0.5 else -1)
        for shot in range(150)
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trec")
    paths = {name: folder / name for name in ("base", "reranked", "qrels")}
    for name, boost, topics in (("base", 0.2, [*TOPICS, "unjudged"]), ("reranked", 0.5, TOPICS[1:])):
        found = {topic: scores(boost > 0.3, topic if topic in TOPICS else TOPICS[0], boost) for topic in topics}
        write_run(
            paths[name],
            Run({t: Ranking(tuple(each), np.array(list(each.values()))) for t, each in found.items()}, name),
        )
    pools = {topic: pool(topic) for topic in TOPICS}
    write_qrels(
        paths["qrels"],
        Qrels({t: Judgments.of(list(each), *zip(*each.values(), strict=True)) for t, each in pools.items()}),
    )
    return paths


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.cli, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def given(files: dict[str, Path], *, reranked: bool = True) -> list[Any]:
    compared = ["--reranked", files["reranked"]] if reranked else []
    return ["--run", files["base"], "--qrels", files["qrels"], *compared]


def test_the_json_alone_goes_to_standard_output_unrounded(files: dict[str, Path]) -> None:
    done = run(*given(files, reranked=False), "--json", "-")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found.keys() == {"sentence", "advice", "texts", "run"}
    expected = {topic: brute_infap(scores(0, topic, 0.2), pool(topic)) for topic in TOPICS}
    assert {topic: each["infAP"] for topic, each in found["run"]["topics"].items()} == pytest.approx(
        expected, rel=1e-12
    )
    assert found["run"]["mean"] == {"infAP": pytest.approx(sum(expected.values()) / len(expected), rel=1e-12)}
    assert done.stderr == "streamer: base has topics without judgments; ignored: unjudged\n"


def test_evaluate_compares_two_runs_with_significance_as_text_and_json(files: dict[str, Path], tmp_path: Path) -> None:
    done = run(*given(files), "--measures", "infAP,ndcg@10,MRR", "--json", tmp_path / "found.json")
    assert done.exit_code == 0
    assert "streamer: reranked lacks judged topics; they are left out of its mean: 1501\n" in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {"sentence", "advice", "texts", "run", "reranked", "comparison", "examples"}
    assert found["run"].keys() == found["reranked"].keys() == {"topics", "mean"}
    assert len(found["run"]["topics"]) == 13
    assert len(found["reranked"]["topics"]) == 12
    assert list(found["reranked"]["mean"]) == ["infAP", "nDCG@10", "RR"]
    compared = found["comparison"]["infAP"]
    assert compared["topics"] == 12 == compared["wins"] + compared["losses"] + compared["ties"]
    assert compared["randomization_p"] < 0.05
    for shown in ("1512", "missing", f"{compared['gain']:+.4f}", f"{found['reranked']['topics']['1512']['RR']:.4f}"):
        assert shown in done.stdout


def test_missing_topics_count_as_zero_where_wanted(files: dict[str, Path]) -> None:
    left_out, counted = (
        json.loads(run(*given(files), "--json", "-", *flags).stdout)["reranked"]
        for flags in ([], ["--missing-as-zero"])
    )
    assert counted["topics"]["1501"] == {"infAP": 0.0}
    assert counted["mean"]["infAP"] == pytest.approx(left_out["mean"]["infAP"] * 12 / 13)


@pytest.mark.parametrize("reranked", [True, False])
def test_the_page_shows_in_a_browser_what_the_json_says(
    files: dict[str, Path], tmp_path: Path, chromium: Browser, reranked: bool
) -> None:
    page_path, json_path = tmp_path / "page.html", tmp_path / "found.json"
    done = run(*given(files, reranked=reranked), "--measures", "infAP,P@10", "--html", page_path, "--json", json_path)
    assert done.exit_code == 0
    found = json.loads(json_path.read_text())
    with browser.opened(chromium, page_path) as page:
        figures = browser.assert_figures_are(found, page)
        for measure in ("infAP", "P@10"):
            assert f"run/mean/{measure}" in figures or f"comparison/{measure}/before" in figures
            assert f"run/topics/1505/{measure}" in figures
        side = "comparison" if reranked else "run"
        values = (
            found["comparison"]["infAP"]["gains"]
            if reranked
            else {topic: each["infAP"] for topic, each in found["run"]["topics"].items()}
        )
        assert side in {path.partition("/")[0] for path in figures}
        # Each bar is as high as its value says, and the topics stand under them.
        name = "gains-infAP" if reranked else "values-infAP"
        heights = [
            page.locator(f"#{name}-bar-{number}").bounding_box()["height"]  # type: ignore[index]
            for number in range(len(values))
        ]
        ordered = sorted(values.values(), reverse=True)
        scale = max(heights) / max(map(abs, ordered))
        assert heights == pytest.approx([abs(value) * scale for value in ordered], abs=1)
        assert "base has topics without judgments; ignored: unjudged" in page.locator("p").all_inner_texts()
        assert HOSTILE in page.locator("th").all_inner_texts()
        assert page.locator("figure svg").count() == (4 if reranked else 2)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(set(ids)) == len(ids)


@pytest.fixture(scope="module")
def several(files: dict[str, Path]) -> dict[str, Path]:
    folder = files["base"].parent / "again"
    folder.mkdir()
    found = {topic: scores(2, topic, 0.3) for topic in TOPICS}
    of = Run({t: Ranking(tuple(each), np.array(list(each.values()))) for t, each in found.items()}, "third")
    write_run(folder / "third", of)
    return {**files, "third": folder / "third"}


def test_several_runs_are_compared_with_the_first_in_one_table(several: dict[str, Path], tmp_path: Path) -> None:
    options = [*given(several), "--reranked", several["third"], "--measures", "infAP,infNDCG"]
    done = run(*options, "--json", tmp_path / "found.json")
    assert done.exit_code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {"sentence", "advice", "texts", "run", "runs", "comparisons", "best", "examples"}
    assert list(found["runs"]) == list(found["comparisons"]) == ["reranked", "third"]
    every = [each for measures in found["comparisons"].values() for each in measures.values()]
    assert len(every) == 4
    # What is compared with one run alone has the same p, corrected for two measures instead of four comparisons.
    alone = json.loads(run(*given(several), "--measures", "infAP,infNDCG", "--json", "-").stdout)["comparison"]
    together = found["comparisons"]["reranked"]
    for measure in ("infAP", "infNDCG"):
        assert alone[measure]["randomization_p"] == together[measure]["randomization_p"]
        assert alone[measure]["gains"] == together[measure]["gains"]
    ordered = sorted(every, key=lambda each: each["randomization_p"])
    corrected = [min(1.0, (4 - place) * each["randomization_p"]) for place, each in enumerate(ordered)]
    assert [each["holm_p"] for each in ordered] == pytest.approx(np.maximum.accumulate(corrected).tolist())
    expected = [brute_infndcg(scores(0, topic, 0.2), pool(topic)) for topic in TOPICS]
    assert found["run"]["mean"]["infNDCG"] == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    assert "Each run against base" in done.stdout


def test_the_page_of_several_runs_shows_in_a_browser_what_the_json_says(
    several: dict[str, Path], tmp_path: Path, chromium: Browser
) -> None:
    page_path, json_path = tmp_path / "page.html", tmp_path / "found.json"
    options = [*given(several), "--reranked", several["third"], "--measures", "infAP,MdR"]
    assert run(*options, "--html", page_path, "--json", json_path).exit_code == 0
    found = json.loads(json_path.read_text())
    with browser.opened(chromium, page_path) as page:
        figures = browser.assert_figures_are(found, page)
        for path in (
            "comparisons/third/infAP/holm_p",
            "comparisons/reranked/MdR/gain",
            "run/mean/MdR",
            "runs/third/topics/1505/infAP",
        ):
            assert path in figures
        assert page.locator("figure svg").count() == 2
        assert page.locator("#runs-MdR-gain-1").count() == 1
        assert HOSTILE in page.locator("th").all_inner_texts()
        assert "base has topics without judgments; ignored: unjudged" in page.locator("p").all_inner_texts()


def test_runs_whose_files_have_one_name_are_told_apart(several: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(several["third"].read_bytes())
    options = [*given(several), "--reranked", tmp_path / "base"]
    found = json.loads(run(*options, "--json", "-").stdout)
    assert list(found["runs"]) == [str(several["reranked"]), str(tmp_path / "base")]
    twice = ["--run", several["base"], "--qrels", several["qrels"], *["--reranked", several["base"]] * 2]
    found = json.loads(run(*twice, "--json", "-").stdout)
    assert list(found["runs"]) == [f"{number}: {several['base']}" for number in (2, 3)]
    assert found["comparisons"][f"2: {several['base']}"]["infAP"]["gain"] == 0


def test_a_text_to_video_benchmark_is_measured_as_the_field_does(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    size = 40
    captions = [f"ret{n},video{n},caption {n}" for n in range(size)]
    (tmp_path / "truth.csv").write_text("\n".join(["key,video_id,sentence", *captions]) + "\n")
    expected = {}
    for name, strength in (("engine", 0.5), ("reranked", 1.0)):
        similarity = random.random((size, size)) + strength * np.eye(size)
        places = 1 + (similarity > np.diag(similarity)[:, None]).sum(axis=1)
        expected[name] = {
            **{f"R@{k}": float(np.mean(places <= k)) for k in (1, 5, 10)},
            "MdR": float(np.median(places)),
            "MnR": float(np.mean(places)),
        }
        shots = tuple(f"video{n}" for n in range(size))
        write_run(tmp_path / name, Run({f"ret{n}": Ranking(shots, similarity[n]) for n in range(size)}, name))
    done = run(
        *("--run", tmp_path / "engine", "--reranked", tmp_path / "reranked", "--qrels", tmp_path / "truth.csv"),
        *("--measures", "R@1,R@5,R@10,MdR,MnR", "--json", tmp_path / "found.json"),
    )
    assert done.exit_code == 0
    assert done.stderr == ""
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["run"]["mean"] == pytest.approx(expected["engine"])
    assert found["reranked"]["mean"] == pytest.approx(expected["reranked"])
    for measure in ("MdR", "MnR"):
        compared = found["comparison"][measure]
        assert compared["gain"] == pytest.approx(expected["engine"][measure] - expected["reranked"][measure])
        assert compared["wins"] > compared["losses"]
        assert compared["randomization_p"] < 0.05
    write_run(tmp_path / "short", Run({"ret0": Ranking(("video1",), np.ones(1))}))
    done = run("--run", tmp_path / "short", "--qrels", tmp_path / "truth.csv", "--measures", "MnR")
    assert "short lists no relevant result of some topics; their rank is 40: ret0\n" in done.stderr


@pytest.mark.parametrize("measure", ["infNDCG", "MdR", "MnR"])
def test_a_sweep_refuses_what_it_does_not_measure(files: dict[str, Path], measure: str) -> None:
    given = ["sweep", "--run", files["base"], "--topics", files["base"], "--qrels", files["qrels"]]
    done = CliRunner().invoke(cli.cli, [*map(str, given), "--measures", f"infAP,{measure}"])
    assert done.exit_code == 2
    assert f"{measure} is measured by streamer evaluate only" in done.stderr


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--measures": "infAP,bleu"}, 2, "unknown measure 'bleu'; available: infAP, AP, nDCG@k"),
        ({"--run": "nothing"}, 2, "nothing"),
        ({"--qrels": "base"}, 1, "base:1: expected 5 columns (topic 0 shot stratum rel), found 6: "),
        ({"--json": "no/folder.json"}, 1, "no/folder.json"),
        (
            {"--qrels": "truth.npy"},
            1,
            "truth.npy: expected an array of integers, booleans or text, found one of o",
        ),
    ],
)
def test_unusable_input_is_reported_in_one_line(
    files: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    code: int,
    message: str,
) -> None:
    given = {"--run": "base", "--qrels": "qrels", **change}
    np.save(files["base"].parent / "truth.npy", np.array([None]), allow_pickle=True)
    monkeypatch.chdir(files["base"].parent)
    monkeypatch.setattr("sys.argv", ["streamer", "evaluate", *(word for pair in given.items() for word in pair)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert message in capfd.readouterr().err.splitlines()[-1]
