"""Every report says what it means, can be read by anybody, and shows its own JSON; looked at without a browser."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from streamer.evaluation.page import Headline, Page, Section, Settings, Table, Text, render, show
from tests.support import pages, report_pages

if TYPE_CHECKING:
    from pathlib import Path

TEXT, GRAPHIC = 4.5, 3.0
"""The least contrasts of WCAG 2.2, level AA."""


@pytest.fixture(scope="module", params=report_pages.NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name: str = request.param
    path, _ = report_pages.write(name, tmp_path_factory.mktemp("pages"))
    return name, path


def test_no_page_has_a_fault_in_its_structure(written: tuple[str, Path]) -> None:
    assert pages.problems(written[1].read_text(encoding="utf-8")) == []


def test_each_figure_of_a_page_is_that_of_its_json(written: tuple[str, Path]) -> None:
    name, path = written
    page = path.read_text(encoding="utf-8")
    data = pages.data_of(page)
    if name == report_pages.DEMO:
        assert data == json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
    figures = pages.figures_of(page)
    pages.assert_same(data, figures)
    assert " ".join(figures["sentence"][0].split()) == " ".join(data["sentence"].split())
    advice, key = (data["missing"], "missing") if name == "pilot" else (data["advice"], "advice")
    assert len([path for path in figures if path.startswith(f"{key}/")]) == len(advice) > 0


@pytest.mark.parametrize("name", ["comparison", "runs", "pilot", "audit", "words", "demo"])
def test_the_engines_first_results_stand_beside_the_reranked_ones(name: str, tmp_path: Path) -> None:
    path, _ = report_pages.write(name, tmp_path)
    page = path.read_text(encoding="utf-8")
    data, figures = pages.data_of(page), pages.figures_of(page)
    if name == report_pages.DEMO:
        assert {"answers/0/engine/4/clip_id", "answers/0/results/4/clip_id"} <= figures.keys()
        return
    assert 1 <= len(data["examples"]) <= 5
    for number, example in enumerate(data["examples"]):
        assert [row["rank"] for row in example["results"]] == [1, 2, 3, 4, 5]
        assert {row["engine"] for row in example["results"]} != {None}
        assert f"examples/{number}/results/4/reranked" in figures
        assert figures[f"examples/{number}/title"] == [example["title"]]
    titles = " ".join(example["title"] for example in data["examples"])
    assert {"audit": "query ", "words": " | "}.get(name, report_pages.NAME) in titles


def pasted(page: str) -> list[str]:
    """Return the lines of settings as somebody copies them."""
    return [line for each in pages.parsed(page).all("pre") for line in "".join(each._texts()).splitlines()]


def test_settings_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path, found = report_pages.write("sweep", tmp_path)
    lines = pasted(path.read_text(encoding="utf-8"))
    assert found["use"] in {"best", "conservative"}
    assert [shlex.split(line) for line in lines] == [
        ["export", f"{name}={value}"] for name, value in found["settings"].items()
    ]
    assert {"STREAMER_ALPHA", "STREAMER_DEPTH"} < found["settings"].keys()


@pytest.mark.parametrize("value", ["0.4", "two words", "$HOME `id` \\", "it's", "", "a;b"])
def test_a_shell_gets_the_value_of_a_setting_whatever_it_is(value: str) -> None:
    data = {"value": value, "sentence": "This is a sentence with a verdict."}
    section = Section("S", [Settings("To paste:", {"STREAMER_X": show(data, "value")})])
    (line,) = pasted(render(Page("T", show(data, "sentence"), "L", data, sections=[section])))
    assert shlex.split(line) == ["export", f"STREAMER_X={value}"]


@pytest.mark.parametrize(
    ("gain", "said", "settings"),
    [(0.2, "Reranking gains", True), (0.0, "It is not shown", False), (-0.2, "not shown", False)],
)
def test_a_sweep_gives_settings_only_where_a_gain_is_shown(gain: float, said: str, settings: bool) -> None:
    _, found = report_pages.swept(gain)
    assert said in found["sentence"]
    assert bool(found["settings"]) == settings
    if settings:
        assert found["settings"]["STREAMER_ALPHA"] == "0.0"


@pytest.mark.parametrize(
    ("after", "said"), [(0.6, "Reranking helps"), (0.1, "It is not shown whether"), (-0.4, "Reranking hurts")]
)
def test_a_comparison_says_what_it_shows(after: float, said: str) -> None:
    _, found = report_pages.compared(after)
    assert found["sentence"].startswith(said)


def test_a_pilot_says_what_to_do_about_each_criterion_that_is_not_met() -> None:
    _, found = report_pages.piloted()
    failed = [each for each in found["criteria"] if each["met"] != "yes"]
    assert failed
    assert all(each["advice"] for each in failed)
    assert not any(each["advice"] or each["settings"] for each in found["criteria"] if each["met"] == "yes")
    settings = {name: value for each in failed for name, value in each["settings"].items()}
    assert settings == {"STREAMER_ALPHA": "0.2", "STREAMER_DEPTH": "50"}
    assert all(name in found["sentence"] for name in ("queries", "latency p95 (ms)"))


def test_colours_can_be_told_apart_in_the_light_and_in_the_dark(tmp_path: Path) -> None:
    path, _ = report_pages.write("run", tmp_path)
    for palette in pages.palettes(path.read_text(encoding="utf-8")):
        for ground in ("page", "card"):
            for text in ("ink", "soft", "good", "bad"):
                assert pages.contrast(palette[text], palette[ground]) >= TEXT, (text, ground)
            for graphic in ("old", "new", "bad"):
                assert pages.contrast(palette[graphic], palette[ground]) >= GRAPHIC, (graphic, ground)


def page_with(*found: str) -> str:
    """Return a good page in which a text is replaced by another one, each pair in turn."""
    data = {"value": 1.5, "sentence": "This is a sentence with a verdict."}
    table = Table("A table", ["name", "value"], [["a", show(data, "value")]], frozenset({1}))
    headline = [Headline(show(data, "value"), "of it")]
    page = render(Page("T", show(data, "sentence"), "L", data, headline, [Section("S", [Text("t"), table])]))
    for old, new in zip(found[::2], found[1::2], strict=True):
        assert old in page
        page = page.replace(old, new)
    return page


@pytest.mark.parametrize(
    ("found", "instead", "problem"),
    [
        ("", "", None),
        (' lang="en"', "", "no language"),
        ("<title>T", "<title>", "no title"),
        ("<h2>S</h2>", "<h3>S</h3>", "h3 follows h1"),
        (' class="verdict"', "", "no verdict below the title"),
        ("This is a sentence with a verdict.", "0.45", "the verdict is no sentence: 0.45"),
        ("<caption>A table</caption>", "", "a table without a caption"),
        (' tabindex="0"', "", "A table: outside of a box that scrolls"),
        (' scope="row"', "", "A table: a heading without a scope or text: a"),
        ("</main>", "<img src='data:x'></main>", "an image without a text"),
        ("</main>", "<svg><path style='fill: #000000'></path></svg></main>", "a picture without a text"),
        ("</main>", "<script>1</script></main>", "a script"),
    ],
)
def test_the_check_of_structure_notices_what_is_wrong(found: str, instead: str, problem: str | None) -> None:
    noticed = pages.problems(page_with(found, instead))
    assert noticed == [] if problem is None else problem in noticed


def test_the_check_of_figures_notices_another_number() -> None:
    page = page_with(">1.5000<", ">1.5001<")
    with pytest.raises(AssertionError, match=r"value is 1\.5 and shown as '1\.5001'"):
        pages.assert_same(pages.data_of(page), pages.figures_of(page))
