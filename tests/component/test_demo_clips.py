"""The rendered clips, their queries and judgments, and the H.264 writer under them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.synthetic.clips import FPS, DemoClip, DemoScene, judge, make_queries, render_clips
from streamer.synthetic.objects import draw_object
from streamer.synthetic.render import FRAME_SIZE, SceneRenderer
from streamer.synthetic.scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    Item,
    Scene,
    describe,
    draw_scene,
    held_out,
    loosen,
    satisfies,
)
from streamer.synthetic.stills import StillSet, draw_stills
from streamer.synthetic.write import write_h264
from streamer.video.sampling.sample import Sampling, sample

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[DemoClip]:
    return render_clips(folder, count=8, seed=5)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(clips: list[DemoClip], tmp_path: Path) -> None:
    again = render_clips(tmp_path / "again", count=3, seed=5)
    other = render_clips(tmp_path / "other", count=1, seed=6)
    for first, second in zip(clips, again, strict=False):
        assert first.scenes == second.scenes
        assert first.path.read_bytes() == second.path.read_bytes()
    assert other[0].scenes != clips[0].scenes


def test_scenes_fill_the_clip_without_gaps_and_last_a_second_or_more(clips: list[DemoClip]) -> None:
    for clip in clips:
        assert 4 <= len(clip.scenes) <= 7
        assert clip.scenes[0].start_ms == 0
        assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(clip.scenes))
        assert all(1000 <= each.end_ms - each.start_ms <= 2500 for each in clip.scenes)
        decoded = sample(clip.path, Sampling(1 / FPS, 1000), np.shape)
        assert decoded.duration_ms == clip.scenes[-1].end_ms
        assert set(decoded.frames) == {(FRAME_SIZE[1], FRAME_SIZE[0], 3)}


def test_rendered_clips_have_cuts_at_the_scenes_ends(clips: list[DemoClip]) -> None:
    clip = clips[0]
    decoded = sample(clip.path, Sampling(1 / FPS, 1000), lambda frame: frame.astype(np.int16))
    change = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(decoded.frames)]
    cuts = {round(scene.start_ms * FPS / 1000) - 1 for scene in clip.scenes[1:]}
    at_cuts = [change[frame] for frame in cuts]
    elsewhere = [each for frame, each in enumerate(change) if frame not in cuts]
    assert min(at_cuts) > max(elsewhere)


def test_a_query_is_relevant_exactly_where_a_scene_satisfies_it(clips: list[DemoClip]) -> None:
    queries = make_queries(clips, count=12, seed=1)
    assert len({query.wanted for query in queries}) == len({query.query_id for query in queries}) == 12
    for query in queries:
        assert query.relevant
        for clip in clips:
            expected = tuple(
                (each.start_ms, each.end_ms) for each in clip.scenes if satisfies(each.scene, query.wanted)
            )
            assert query.moments.get(clip.clip_id, ()) == expected
    assert make_queries(clips, count=12, seed=1) == queries
    assert make_queries(clips, count=12, seed=2) != queries


def test_more_queries_than_the_clips_hold_are_refused(clips: list[DemoClip]) -> None:
    with pytest.raises(ValueError, match="different requests, not 500"):
        make_queries(clips[:1], count=500, seed=0)


def test_judgments_ignore_the_captions(clips: list[DemoClip]) -> None:
    scene = Scene((Item("car", "red"),), "grass")
    lying = DemoClip("c", clips[0].path, (DemoScene(0, 1500, scene, "a blue fish at night"),))
    assert judge([lying], Scene((Item("car", "red"),), None)) == {"c": ((0, 1500),)}
    assert judge([lying], Scene((Item("fish", "blue"),), "night")) == {}


@given(SEEDS)
def test_a_scene_satisfies_every_loosened_description_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    wanted = loosen(scene, rng)
    assert satisfies(scene, wanted)
    assert wanted.background or any(item.colour for item in wanted.items)


@given(SEEDS)
def test_a_description_names_each_attribute_that_it_fixes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = loosen(draw_scene(rng), rng)
    text = describe(wanted, rng)
    for item in wanted.items:
        assert (item.object if item.count == 1 else OBJECTS[item.object]) in text
        assert (item.colour or "") in text
        assert {1: "", 2: "two", 3: "three"}[item.count] in text
    assert any(phrase in text for phrase in BACKGROUNDS[wanted.background]) if wanted.background else True


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Scene((Item("car", "red"),), None), True),
        (Scene((Item("car", None),), "snow"), True),
        (Scene((Item("star", "blue"), Item("car", "red")), "snow"), True),
        (Scene((Item("car", "blue"),), None), False),
        (Scene((Item("star", "red"), Item("car", "blue")), "snow"), False),
        (Scene((Item("car", "red", count=2),), None), False),
        (Scene((Item("car", "red", size="large"),), None), False),
        (Scene((Item("car", "red"),), "beach"), False),
        (Scene((Item("car", "red"), Item("car", "red")), None), False),
    ],
)
def test_colour_and_object_must_belong_together(wanted: Scene, expected: bool) -> None:
    scene = Scene((Item("car", "red"), Item("star", "blue")), "snow")
    assert satisfies(scene, wanted) is expected


def test_held_out_pairs_spare_no_object_or_colour_wholly() -> None:
    pairs = {(name, colour) for name in OBJECTS for colour in COLOURS if held_out(Item(name, colour))}
    assert 0.1 < len(pairs) / (len(OBJECTS) * len(COLOURS)) < 0.2
    assert {name for name, _ in pairs} == set(OBJECTS)
    for colour in COLOURS:
        assert 0 < sum(each == colour for _, each in pairs) < len(OBJECTS) / 2


def test_stills_keep_seen_and_held_out_pairs_apart() -> None:
    seen = draw_stills(StillSet(0, 1, held_out=False, captions=3, side=32), 20)
    unseen = draw_stills(StillSet(0, 1, held_out=True), 20)
    assert not any(held_out(item) for still in seen for item in still.scene.items)
    assert all(any(held_out(item) for item in still.scene.items) for still in unseen)
    assert {still.frame.shape for still in seen} == {(32, 32, 3)}
    assert {len(still.captions) for still in seen} == {3}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_show_their_colour_and_stay_inside_their_square(name: str) -> None:
    pixels = np.asarray(draw_object(name, COLOURS["red"], 60)).astype(int)
    opaque = pixels[pixels[..., 3] > 250]
    red = (opaque[:, 0] > 120) & (opaque[:, 1] < 130) & (opaque[:, 2] < 130)
    assert red.mean() > 0.25
    assert not pixels[[0, -1], :, 3].any()
    assert not pixels[:, [0, -1], 3].any()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_objects_stand_out_from_every_background(background: str) -> None:
    scene = Scene((Item("heart", "purple", size="large"),), background)
    frame = SceneRenderer(scene, np.random.default_rng(0)).frame(0.5).astype(int)
    purple = np.abs(frame - np.array(COLOURS["purple"])).sum(axis=2) < 110
    assert 0.08 < purple.mean() < 0.5


def test_written_frames_come_back_nearly_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(20, 230, 64).astype(np.uint8)
    frames = [np.stack([np.full((48, 64), 40 * k), np.tile(ramp, (48, 1)), np.full((48, 64), 90)], 2) for k in range(5)]
    assert write_h264(tmp_path / "a.mp4", (frame.astype(np.uint8) for frame in frames), fps=10) == 5
    back = sample(tmp_path / "a.mp4", Sampling(0.1, 10), np.copy)
    assert back.times_ms.tolist() == [0, 100, 200, 300, 400]
    assert back.duration_ms == 500
    for frame, decoded in zip(frames, back.frames, strict=True):
        assert np.abs(frame.astype(int) - decoded).mean() < 6


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "no frames"),
        ([(48, 63)], "even, got 63x48"),
        ([(47, 64)], "even, got 64x47"),
        ([(48, 64), (48, 62)], "frame 1 is 62x48, not 64x48"),
    ],
)
def test_unfit_frames_are_refused(tmp_path: Path, shapes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_h264(tmp_path / "a.mp4", (np.zeros((*shape, 3), np.uint8) for shape in shapes), fps=10)
