"""Probes: their truth, how answers are counted, and what the report says of models that understand or do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.negation import split
from streamer.evaluation.page import render
from streamer.synthetic import probe_report, probes
from streamer.synthetic.probes import KINDS, Probe, Scored, draw, finds
from streamer.synthetic.render import SceneRenderer
from streamer.synthetic.scenes import COLOURS, Item, Scene


def middle_of(frame: np.ndarray, colour: str) -> float:
    """Return the mean x of the pixels that are nearest to a colour, in pixels."""
    far = np.abs(frame.astype(float) - COLOURS[colour]).sum(axis=2)
    return float(np.nonzero(far < 90)[1].mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_renderer_says_where_objects_are(seed: int) -> None:
    scene = Scene((Item("ball", "red"), Item("ball", "blue")), "snow")
    renderer = SceneRenderer(scene, np.random.default_rng(seed))
    (red, _), (blue, _) = renderer.centres()
    frame = renderer.frame(0.5)
    assert (middle_of(frame, "red") < middle_of(frame, "blue")) == (red < blue)


def test_a_number_has_one_probe_of_each_kind_and_the_same_every_time() -> None:
    first, again = (list(draw(5, 2)) for _ in range(2))
    kinds = [probe.kind for pair in first for probe in pair.probes]
    assert sorted(kinds) == sorted(KINDS)
    assert [pair.probes for pair in first] == [pair.probes for pair in again]
    for pair, same in zip(first, again, strict=True):
        assert np.array_equal(pair.clips, same.clips)
    assert [pair.probes for pair in draw(5, 3)] != [pair.probes for pair in first]


@pytest.mark.parametrize("number", range(6))
def test_captions_are_true_of_their_own_clip_only(number: int) -> None:
    negation, numbers, side = draw(1, number)
    for probe in negation.probes:
        first, second = probe.captions
        assert split(first) is None
        negated = split(second)
        if probe.kind == probes.CONTROL:
            assert negated is None
        else:
            assert negated is not None
            assert first.startswith(negated.rest)
            assert negated.part.split()[-1] in first
    # Clips of as many objects have the same background, places and light; only one object differs.
    same = np.abs(np.subtract(negation.clips[0][0], negation.clips[1][0], dtype=float)).max(axis=2) < 1
    assert 0.5 < same.mean() < 1
    counts = [{"a": 1, "one": 1, "two": 2, "three": 3}[caption.split()[0]] for caption in numbers.probes[0].captions]
    assert counts[0] != counts[1]
    for frame, mirrored in zip(*side.clips, strict=True):
        assert np.array_equal(frame, mirrored[:, ::-1])
    assert {"left", "right"} == {caption.split(" to the ")[1].split()[0] for caption in side.probes[0].captions}


@pytest.mark.parametrize("seed", range(4))
def test_left_is_left_in_the_picture(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_items", lambda *_: [Item("ball", "red"), Item("ball", "blue")])
    monkeypatch.setattr(probes, "_background", lambda _: "snow")
    pair = probes._side(np.random.default_rng(seed))
    for caption, clip in zip(pair.probes[0].captions, pair.clips, strict=True):
        for frame in clip:
            assert (middle_of(frame, "red") < middle_of(frame, "blue")) == ("left" in caption)


@given(scores=st.lists(st.integers(0, 2), min_size=2, max_size=2), clip=st.integers(0, 1), number=st.integers(0, 9))
def test_a_tie_is_a_guess(scores: list[int], clip: int, number: int) -> None:
    found = finds(np.array(scores, float), clip, number)
    mine, other = scores[clip], scores[1 - clip]
    assert found == (mine > other or (mine == other and number % 2 == 0))


def scored(second: float, *, by_rule: float | None = 0.9, count: int = 60) -> list[Scored]:
    """Make scores of a model that knows nouns, and finds what is probed with the probability ``second``."""
    rng = np.random.default_rng(3)
    made = []
    for kind in KINDS:
        for _ in range(count):
            right = rng.random() < (1 if kind == probes.CONTROL else second)
            ruled = None
            if kind in ("no", "without") and by_rule is not None:
                ruled = np.array([0.0, 1.0] if rng.random() < by_rule else [1.0, 0.0])
            scores = np.array([[1.0, 0.0], [0.0, 1.0] if right else [1.0, 0.0]])
            made.append(Scored(Probe(kind, ("plain", f"{kind} <b>")), scores, ruled))
    return made


@pytest.mark.parametrize(
    ("second", "said"), [(0.95, "above chance"), (0.5, "not told from chance"), (0.05, "below chance")]
)
def test_the_report_tells_understanding_from_chance_and_from_the_reverse(second: float, said: str) -> None:
    found = probe_report.data(scored(second), model_id="m-1", seed=3, weight=0.5)
    rows = {(each["probe"], each["query"]): each for each in found["probes"]}
    assert {kind for kind, _ in rows} == set(KINDS)
    assert rows["object", probe_report.AS_IT_IS]["accuracy"] == 1
    for kind in KINDS[1:]:
        assert rows[kind, probe_report.AS_IT_IS]["says"] == said
    for kind in ("no", "without"):
        assert rows[kind, probe_report.PLAIN]["accuracy"] == 1
        assert rows[kind, probe_report.RULE]["says"] == "above chance"
        assert (found["rule"][kind]["gained"] > found["rule"][kind]["lost"]) == (second < 0.9)
    assert set(found["rule"]) == {"no", "without"}
    assert all(each["holm_p"] >= each["p"] for each in [*found["probes"], *found["rule"].values()])


def test_all_forms_of_the_report_have_every_row() -> None:
    found: dict[str, Any] = probe_report.data(scored(0.5), model_id="m-1", seed=3, weight=0.5)
    table, changes = probe_report.terminal(found)
    assert (table.row_count, changes.row_count) == (len(found["probes"]), 2)
    assert len(probe_report.markdown(found).splitlines()) == len(found["probes"]) + 4
    page = render(probe_report.page(found))
    for number in range(len(found["probes"])):
        assert f'data-figure="probes/{number}/accuracy"' in page
        assert f'id="probes-accuracy-{number}"' in page
    assert "&lt;b&gt;" in page
