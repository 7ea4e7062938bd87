"""Pairs of queries that differ in one word: lists from outside, planted biases, none, and verdicts that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from streamer.cli import cli
from streamer.evaluation.masks.anew import drawn, files_of
from streamer.evaluation.masks.masking import SHARE, Masked, masked
from streamer.evaluation.overlap import overlap_of
from streamer.evaluation.words import figures
from streamer.evaluation.words.figures import ALIKE, DIFFERS, FEW, REFUSED, decide, permutation
from streamer.evaluation.words.lists import MAX_PAIRS, STARTER, WordListError, WordPair, read_pairs
from streamer.evaluation.words.scores import Scored, Sensitivity

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

PAIR = '[[pairs]]\nkind = "k"\nfirst = "a man runs"\nsecond = "a woman runs"\n'
BIAS = 0.01


def pairs(count: int) -> list[WordPair]:
    return [WordPair(f"kind {number}", f"a man {number}", f"a woman {number}") for number in range(count)]


def scored(bias: list[float], clips: int = 200, seed: int = 1) -> Scored:
    """Make scores in which the second query's are higher by a bias for each pair, but for noise of 0.02."""
    rng = np.random.default_rng(seed)
    first = rng.normal(0.2, 0.03, (len(bias), clips))
    second = first + rng.normal(0, 0.02, first.shape) + np.array(bias)[:, None]
    return Scored(tuple(f"c{number}" for number in range(clips)), np.stack([first, second]))


def sample(found: Scored, moved: float, count: int = 50) -> Sensitivity:
    """Make a sample of the clips in which masks move the second query's scores."""
    plain = found.scores[:, :, :count]
    others = np.stack([plain, plain, plain])
    others[1, 1] += moved
    return Sensitivity(plain, others, 0)


def test_the_starter_set_differs_in_one_word_in_each_pair_and_has_the_kinds() -> None:
    found = read_pairs(STARTER)
    kinds = {each.kind for each in found}
    assert {"appearance", "behaviour", "finance", "employment", "crime", "health"} <= kinds
    assert all(len(each.words) == 2 for each in found)
    assert len(found) >= 3 * len(kinds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected \\[\\[pairs\\]\\] with kind, first and second: .*`pairs`"),
        (b"pairs = []", "expected 1 to 500 pairs, found 0"),
        (b"\xff\xfe", "expected TOML in UTF-8"),
        (b"pairs = [", "expected TOML in UTF-8, found an error"),
        (b"pairs = " + b"[" * 5_000 + b"]" * 5_000, "nested too deeply|expected"),
        (b"# " + b"x" * 300_000, "expected at most 262,144 bytes"),
        (PAIR.replace("kind", "sort").encode(), "unknown field `sort`|missing required field"),
        (PAIR.replace('"k"', "1").encode(), "Expected `str`, got `int`"),
        (PAIR.replace('"k"', '"' + "k" * 41 + '"').encode(), "pair 1: kind: expected 1 to 40 characters, found 41"),
        (PAIR.replace("a man runs", " ").encode(), "pair 1: first: expected 1 to 200 characters"),
        (PAIR.replace("a man runs", "a man\\u001b[31m runs").encode(), "pair 1: first: expected printable text"),
        (PAIR.replace("a man runs", "a man").encode(), "expected queries of equally many words, found 2 and 3"),
        (PAIR.replace("a woman", "the woman").encode(), "differ in one word, found 2 that differ"),
        (PAIR.replace("woman", "MAN").encode(), "differ in one word, found 0 that differ"),
        ((PAIR + PAIR).encode(), "pair 2: expected each pair once"),
        (("".join(PAIR.replace("runs", f"runs{n}") for n in range(MAX_PAIRS + 1))).encode(), "found 501"),
    ],
)
def test_a_hostile_list_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_bytes(content)
    with pytest.raises(WordListError, match=message) as raised:
        read_pairs(str(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_a_list_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "nothing", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(WordListError, match=f"{path}: {why}"):
            read_pairs(str(path))


def test_options_of_pairs_need_a_list(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["probe", "--model", "demo", "--videos", str(tmp_path)])
    assert done.exit_code == 2
    assert "--candidates and --videos need --words" in done.output


def test_a_planted_bias_is_found_with_its_size_and_others_are_not() -> None:
    found = decide(pairs(4), scored([0, BIAS, 0, -BIAS]), None, top=10, seed=3)
    assert [each["says"] for each in found["pairs"]] == [ALIKE, DIFFERS, ALIKE, DIFFERS]
    # The standard error is 0.02 / sqrt(200).
    for each, planted in zip(found["pairs"], (0, BIAS, 0, -BIAS), strict=True):
        assert each["shift"] == pytest.approx(planted, abs=0.005)
        assert each["overlap"] < 1
    assert "in 2 of 4 pairs" in found["sentence"]
    assert "was not measured" in found["sentence"]
    assert {each["title"] for each in found["examples"]} == {"a man 1 | a woman 1", "a man 3 | a woman 3"}


def test_where_no_bias_is_planted_at_most_one_probe_in_twenty_finds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESAMPLES", 999)
    runs = 200
    wrong = sum(
        any(
            each["says"] == DIFFERS
            for each in decide(pairs(5), scored([0] * 5, 60, seed), None, top=10, seed=seed)["pairs"]
        )
        for seed in range(runs)
    )
    assert binomtest(wrong, runs, 0.05, alternative="greater").pvalue > 0.01


def test_clips_that_are_the_same_video_are_one_piece_of_evidence() -> None:
    few = scored([0.006], 40, seed=8)
    copies = Scored(tuple(f"c{number}" for number in range(400)), np.tile(few.scores, 10))
    one, other = (decide(pairs(1), each, None, top=10, seed=1) for each in (few, copies))
    assert (one["different_clips"], other["different_clips"]) == (40, 40)
    assert other["pairs"][0]["p"] == pytest.approx(one["pairs"][0]["p"], abs=0.01)
    alone = permutation(copies.scores[1] - copies.scores[0], np.arange(400), 1)
    assert alone[0] < one["pairs"][0]["p"]


@pytest.mark.parametrize(("moved", "says"), [(BIAS / 4, DIFFERS), (2 * BIAS, REFUSED), (-2 * BIAS, REFUSED)])
def test_there_is_no_verdict_where_masks_move_a_figure_by_as_much_as_it_is_large(moved: float, says: str) -> None:
    asked = scored([BIAS])
    found = decide(pairs(1), asked, sample(asked, moved), top=10, seed=1)
    (row,) = found["pairs"]
    assert row["says"] == says
    assert row["shift_sensitivity"] == pytest.approx(abs(moved))
    assert ("There is no verdict on 1 more" in found["sentence"]) == (says == REFUSED)
    assert row["overlap_sensitivity"] == 0  # a shift of all clips leaves their order as it is
    assert row["overlap_says"] == "larger than its sensitivity"


def test_an_overlap_is_refused_where_masks_change_the_lists_more() -> None:
    asked = scored([BIAS])
    found = sample(asked, 0.0)
    found.plain[1] = found.plain[0]  # in the sample both queries have the same list
    (row,) = decide(pairs(1), asked, found, top=10, seed=1)["pairs"]
    assert row["overlap_sample"] == 1
    assert row["overlap_says"] == REFUSED


def test_few_clips_have_no_verdict() -> None:
    found = decide(pairs(1), scored([0.5], 19), None, top=10, seed=1)
    assert found["pairs"][0]["says"] == FEW
    assert found["sentence"].startswith("No verdict: 19 different clips are too few")


def test_the_permutation_test_is_exact_for_few_clips() -> None:
    # Of 2 ** 5 signs only all of one kind give a mean so far from 0.
    (p,) = permutation(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), np.arange(5), 1)
    assert p == pytest.approx(2 / 32, abs=0.005)
    assert permutation(np.zeros((1, 5)), np.arange(5), 1)[0] == 1


def test_the_overlap_of_lists_with_other_results() -> None:
    assert overlap_of([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert overlap_of([1, 2, 3], [4, 5, 6]) == 0
    assert 0 < overlap_of([1, 2, 3], [3, 4, 5]) < overlap_of([1, 2, 3], [1, 4, 5]) < 1


def test_a_mask_covers_a_tenth_in_the_mean_colour_in_the_same_place_each_time() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    before = frame.copy()
    changed = masked(frame, 3)
    assert np.array_equal(frame, before)
    differs = (changed != frame).any(axis=2)
    assert differs.mean() == pytest.approx(SHARE, abs=0.01)
    rows, columns = np.nonzero(differs)
    inside = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    assert np.abs(inside[0] - frame.reshape(-1, 3).mean(axis=0)).max() <= 0.5
    assert np.array_equal(changed, masked(frame, 3))
    assert not np.array_equal(changed, masked(frame, 4))

    def halved(each: npt.NDArray[np.uint8]) -> Any:
        return each[::2]

    assert np.array_equal(Masked(halved, 3)(frame), changed[::2])
    assert masked(np.zeros((1, 1, 3), np.uint8), 1).shape == (1, 1, 3)


def test_clips_are_drawn_by_the_seed_and_files_are_found_by_their_ids(tmp_path: Path) -> None:
    every = [f"c{number}" for number in range(100)]
    assert drawn(reversed(every), 10, 1) == drawn(every, 10, 1) != drawn(every, 10, 2)
    assert drawn(every, 1_000, 1) == sorted(every)
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"")
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for name in ("c1.mp4", "deep/c2.mkv", "deep/c3", "other.mp4"):
        (folder / name).write_bytes(b"")
    (folder / "c4.mp4").symlink_to(outside)
    found = files_of(folder, ["c1", "c2", "deep/c3", "c4", "../outside"])
    assert found == {"c1": folder / "c1.mp4", "c2": folder / "deep" / "c2.mkv", "deep/c3": folder / "deep" / "c3"}
