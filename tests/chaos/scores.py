"""The scores of the answers, worked out again from the records, and whether each status is what it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.chaos.verify import Finding
from tests.support.recompute import COSINE_TIE, SCORE_TOLERANCE, normalised
from tests.support.recompute_scores import predicted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from streamer.events import QueryReranked, RerankedCandidate
    from tests.chaos.inputs import Input
    from tests.chaos.ledger import Ledger
    from tests.chaos.verify import StoredClip

    Texts = Callable[[str], npt.NDArray[np.float64]]
    """Encodes a query: (d,), L2-normalised."""

_BLEND_TOLERANCE = 1e-6
"""Of a score that is worked out from the frame scores beside it."""


class Judge:
    """Works the scores out again; ``text`` encodes a query."""

    def __init__(self, text: Texts) -> None:
        self._text = text
        self._best: dict[tuple[str, int], tuple[float, frozenset[int]]] = {}
        self._kept: list[StoredClip] = []

    def while_broken(
        self,
        answers: Iterable[tuple[Input, QueryReranked]],
        possible: Mapping[str, Sequence[StoredClip]],
        ledger: Ledger,
        since: Mapping[str, float],
    ) -> Finding:
        """Judge answers that were given while the store changed.

        ``possible``: the records that a clip has had. ``since``: from when on clips have always had one, in seconds
        after 1970. A candidate is unavailable only where a fault entitles to it.
        """
        finding = Finding("every answer's scores are those of records that its clips have had")
        counted = 0
        for cause, answer in answers:
            if answer.degraded is not None:
                continue
            counted += 1
            may_be_incomplete = ledger.may_be_incomplete(cause)
            finding.problems += [f"{answer.query_id}: {each}" for each in _unblended(answer)]
            for each in answer.results:
                why = self._unlike(answer.query, each, possible.get(each.clip_id, ()))
                if each.status == "unavailable" and not may_be_incomplete:
                    why = "is unavailable while every server answers"
                if each.status == "not_embedded" and not may_be_incomplete:
                    embedded_at = since.get(each.clip_id, np.inf)
                    if embedded_at < cause.published_at:
                        why = f"is not embedded, and was {cause.published_at - embedded_at:.1f} s before the query"
                if why:
                    finding.problems.append(f"{answer.query_id}: {each.clip_id} {why}")
        finding.counted = f"{counted} answers"
        return finding

    def in_the_end(
        self, answers: Iterable[tuple[Input, QueryReranked]], store: Mapping[str, StoredClip], expected: int
    ) -> Finding:
        """Judge answers that were given when nothing was broken any more, by what the store holds; all are there."""
        finding = Finding("in the end every answer's scores are those of the store's records")
        statuses = {"reranked": 0, "not_embedded": 0}
        for _, answer in answers:
            expected -= 1
            if answer.degraded is not None:
                finding.problems.append(f"{answer.query_id} is degraded: {answer.degraded}")
                continue
            finding.problems += [f"{answer.query_id}: {each}" for each in _unblended(answer)]
            for each in answer.results:
                record = store.get(each.clip_id)
                status = "not_embedded" if record is None else "reranked"
                statuses[status] += 1
                why = self._unlike(answer.query, each, () if record is None else (record,))
                if each.status != status:
                    why = f"is {each.status} and should be {status}"
                if why:
                    finding.problems.append(f"{answer.query_id}: {each.clip_id} {why}")
        if expected:
            finding.problems.append(f"{expected} answers are missing")
        finding.counted = ", ".join(f"{count} {status}" for status, count in statuses.items())
        return finding

    def _unlike(self, query: str, given: RerankedCandidate, records: Sequence[StoredClip]) -> str:
        """Return what of a candidate is that of none of these records; empty where all is well."""
        if given.status != "reranked":
            return "" if given.frame_score is None and given.moment_ms is None else "has a score without a record"
        if given.frame_score is None:
            return "has no score"
        for record in records:
            best, moments = self._scored(query, record)
            if abs(given.frame_score - best) < SCORE_TOLERANCE and given.moment_ms in moments:
                return ""
        return f"has the score {given.frame_score:.4f} at {given.moment_ms} ms, of none of {len(records)} record(s)"

    def _scored(self, query: str, record: StoredClip) -> tuple[float, frozenset[int]]:
        """Return a record's best cosine, and the times of the frames that are as good."""
        key = query, id(record)
        if key not in self._best:
            self._kept.append(record)  # so that no other one gets its id
            cosines = record.vectors.astype(np.float64) @ self._text(query)
            near = np.flatnonzero(cosines >= cosines.max() - COSINE_TIE)
            self._best[key] = float(cosines.max()), frozenset(record.times_ms[place] for place in near)
        return self._best[key]


def _unblended(answer: QueryReranked) -> Iterator[str]:
    """Yield what of an answer's scores and of its order does not follow from the scores of frames beside it."""
    within = sorted(answer.results, key=lambda each: each.initial_rank)[: answer.depth]
    initial = normalised(np.array([each.initial_score for each in within], float), answer.normalization)
    frames = normalised(
        np.array([each.frame_score for each in within if each.frame_score is not None], float), answer.normalization
    )
    there = np.array([each.frame_score is not None for each in within], bool)
    side = initial.copy()
    side[there] = frames
    if answer.missing == "impute" and there.any():
        imputed = np.array(predicted(initial[there].tolist(), frames.tolist(), initial[~there].tolist()))
        side[~there] = imputed.clip(0, 1) if answer.normalization == "minmax" else imputed
    scores = answer.alpha * initial + (1 - answer.alpha) * side
    for each, score in zip(within, scores, strict=True):
        if each.score is None or abs(each.score - score) > _BLEND_TOLERANCE:
            yield f"{each.clip_id} has the score {each.score}, and should have {score:.6f}"
    order = sorted(within, key=lambda each: (-(each.score or 0.0), each.initial_rank))
    if [each.clip_id for each in answer.results[: len(within)]] != [each.clip_id for each in order]:
        yield "not in the order of the scores"
