"""An audit beside what masks do to it: figures by hand, verdicts that are refused, answers that are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.evaluation.audit.figures import Audit
from streamer.evaluation.audit.groups import Catalogue, Groups
from streamer.evaluation.audit.lists import Lists, lists_of
from streamer.evaluation.audit.sensitivity import MOST_ANSWERS, Drawn, Masking, chosen, measure
from streamer.evaluation.audit.verdict import OPEN, SHIFT, decide
from streamer.events import QueryReranked, RerankedCandidate, Status, now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLIPS = ("x1", "y1", "x2", "y2")
ALPHA = 0.4


def catalogue() -> Catalogue:
    found = Catalogue(["side"])
    for clip in CLIPS:
        found.put(clip, {"side": clip[0]})
    return found


def answer(query: str, frame: dict[str, float | None], query_id: str = "q") -> QueryReranked:
    """Make an answer whose order is that of the frame scores; the engine prefers the clips in their order."""
    order = sorted(CLIPS, key=lambda clip: -(frame[clip] or 0.0))
    at = now()
    return QueryReranked(
        query_id=query_id, query=query, engine="e", issued_at=at, reranked_at=at, model_id="m", alpha=ALPHA, depth=4,
        normalization="none", missing="own", degraded=None,
        results=[
            RerankedCandidate(
                clip, rank, 0.5, CLIPS.index(clip) + 1, 1.0 - CLIPS.index(clip) / 10, frame[clip],
                None if frame[clip] is None else 500,
                Status.NOT_EMBEDDED if frame[clip] is None else Status.RERANKED,
            )
            for rank, clip in enumerate(order, start=1)
        ],
    )  # fmt: skip


class Anew:
    """Clips decoded anew, each to one vector at a given cosine to the axis of all queries; None cannot be decoded."""

    def __init__(self, plain: dict[str, float | None], *masked: dict[str, float | None]) -> None:
        self._plain, self._masked = plain, masked

    def plain(self, paths: Sequence[Path]) -> Iterator[Any]:
        return self._vectors(self._plain, paths)

    def masked(self, paths: Sequence[Path]) -> list[Iterator[Any]]:
        return [self._vectors(each, paths) for each in self._masked]

    @staticmethod
    def _vectors(cosines: dict[str, float | None], paths: Sequence[Path]) -> Iterator[Any]:
        for path in paths:
            cosine = cosines[path.name]
            yield None if cosine is None else np.array([[cosine, (1 - cosine**2) ** 0.5]], np.float32)


FILES = {clip: Path(clip) for clip in CLIPS}
AXIS = np.array([1, 0], np.float32)
SERVED: dict[str, float | None] = {"x1": 0.1, "y1": 0.9, "x2": 0.2, "y2": 0.8}


def measured(answers: Sequence[QueryReranked], anew: Anew, *, top: int = 2) -> Masking | None:
    some, clips = chosen(answers, FILES, 100)
    return measure(
        some,
        clips,
        texts=[AXIS] * len(some),
        files=FILES,
        anew=anew,  # type: ignore[arg-type]  # a double that decodes nothing
        groups=[Groups("side", Counter(x=2, y=2), 5)],
        catalogue=catalogue(),
        top=top,
    )


def test_the_sensitivity_is_the_most_by_which_a_draw_of_masks_moves_a_group() -> None:
    # y1 and y2 are first as served. One draw of masks brings x2 up among the first two, the other one changes no rank.
    one_up = {**SERVED, "x2": 0.99}
    same: dict[str, float | None] = {clip: (cosine or 0.0) - 0.01 for clip, cosine in SERVED.items()}
    found = measured([answer("snow", SERVED)], Anew(SERVED, same, one_up))
    assert found is not None
    # Ranks 1 and 2 weigh the same.
    assert found.moves[0].tolist() == pytest.approx([0.5, 0.5, 0])
    assert (found.queries, found.clips, found.failed, found.share) == (1, 4, 0, 1)


def test_masks_that_change_no_score_move_nothing() -> None:
    found = measured([answer("snow", SERVED), answer("rain", SERVED)], Anew(SERVED, SERVED, SERVED, SERVED))
    assert found is not None
    assert found.moves[0].tolist() == [0, 0, 0]


def test_a_clip_that_cannot_be_decoded_each_time_keeps_the_score_that_was_served() -> None:
    broken = {**SERVED, "x2": None}
    wild = {**SERVED, "x2": 0.99, "x1": 0.98}
    found = measured([answer("snow", SERVED)], Anew(SERVED, wild, broken))
    assert found is not None
    assert found.moves[0].tolist() == pytest.approx([0.5, 0.5, 0])  # x1 alone
    assert (found.clips, found.failed, found.share) == (3, 1, 0.75)
    assert measured([answer("snow", SERVED)], Anew(SERVED, dict.fromkeys(CLIPS))) is None


def test_a_candidate_without_a_record_has_no_score_anew() -> None:
    without = {**SERVED, "y1": None}
    found = measured([answer("snow", without)], Anew(SERVED, SERVED))
    assert found is not None
    assert found.moves[0].tolist() == [0, 0, 0]
    assert (found.clips, found.share) == (3, 1)


def test_answers_are_chosen_as_long_as_few_enough_clips_have_to_be_decoded() -> None:
    answers = [answer(f"q{number}", SERVED) for number in range(5)]
    assert len(chosen(answers, FILES, 4)[0]) == 5
    assert chosen(answers, {}, 4) == ([], [])
    assert chosen(answers, {"x1": Path("x1")}, 1) == (answers, ["x1"])
    others = [answer("other", {**SERVED, "x1": None}), *answers]
    assert chosen(others, FILES, 3) == (others[:1], ["y1", "y2", "x2"])
    assert chosen(answers, FILES, 1)[0] == answers  # the first answer in any case


def test_answers_are_drawn_by_the_seed_and_each_is_as_likely() -> None:
    answers = [answer("q", SERVED, f"q{number}") for number in range(3 * MOST_ANSWERS)]
    lists = [each for each in map(lists_of, answers) if isinstance(each, Lists)]
    times: Counter[str] = Counter()
    for seed in range(60):
        drawn = Drawn([*lists, Lists("run", ["a"], ["a"])], seed)
        assert len(list(drawn)) == len(answers) + 1
        kept = drawn.answers()
        assert len({each.query_id for each in kept}) == MOST_ANSWERS
        times.update(each.query_id for each in kept)
    again = Drawn(lists, 59)
    list(again)
    assert {each.query_id for each in again.answers()} == {each.query_id for each in kept}
    thirds = [sum(times[f"q{number + third * MOST_ANSWERS}"] for number in range(MOST_ANSWERS)) for third in range(3)]
    assert all(abs(each - 60 * MOST_ANSWERS / 3) < 5 * (60 * MOST_ANSWERS * 2 / 9) ** 0.5 for each in thirds)


def audited(masking: Masking | None) -> dict[str, Any]:
    """Audit 60 answers, of which two of three have both clips of y first."""
    audit = Audit(catalogue(), ["side"], top=2, most=5)
    changed = answer("", SERVED)
    lists = [
        Lists(f"query {number}", CLIPS, [each.clip_id for each in changed.results] if number % 3 else CLIPS)
        for number in range(60)
    ]
    audit.add(lists)
    return decide({**audit.data(masking), "left_out": {}, "passed_over": []})


def test_a_change_that_masks_make_of_themselves_is_refused() -> None:
    unmeasured = audited(None)
    assert unmeasured["verdict"] == SHIFT
    assert "How far masked frames would move these figures was not measured." in unmeasured["cautions"]
    change = unmeasured["shifts"][0]["change"]
    little = audited(Masking([np.array([0.01, 0.01, 0])], 10, 40, 0, 1.0))
    assert (little["verdict"], len(little["shifts"]), little["refused"]) == (SHIFT, 2, [])
    assert little["attributes"][0]["groups"][0]["masking"] == 0.01
    half = audited(Masking([np.array([abs(change), 0.01, 0])], 10, 40, 0, 1.0))
    assert (half["verdict"], len(half["shifts"]), len(half["refused"])) == (SHIFT, 1, 1)
    assert any("masked frames make of themselves" in each for each in half["cautions"])
    refused = audited(Masking([np.array([1.0, 1.0, 0])], 10, 40, 0, 1.0))
    assert (refused["verdict"], refused["shifts"], len(refused["refused"])) == (OPEN, [], 2)
    assert refused["sentence"].startswith("No verdict: masking a tenth of each frame")
