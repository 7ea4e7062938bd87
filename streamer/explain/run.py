"""From a query's id, or a text and candidates, to what there is to say: reads, recomputes, fetches."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from streamer.codec import JSON
from streamer.encoders import load_model
from streamer.evaluation.questions import answers_of_file
from streamer.evaluation.replay import TextVectors
from streamer.events import Candidate, InvalidEvent, QueryResults, now
from streamer.explain.found import ExplainError, Given, Known, lines_of, uploads_of_file, uris_of
from streamer.explain.pictures import Frame, Pictures
from streamer.explain.report import Explanation, Now
from streamer.explain.stored import Snapshot, State, curve
from streamer.method import answer as answer_of
from streamer.method import method_of, rerank_candidates
from streamer.settings import invalid_setting
from streamer.store import StoreError, StoreOptions, StoreUnavailableError
from streamer.store.admin import PAGE_RECORDS
from streamer.store.opening import open_admin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from streamer.events import QueryReranked, RerankedCandidate
    from streamer.explain.topics import Searcher
    from streamer.method import Method
    from streamer.settings import ExplainSettings
    from streamer.store.admin import StoreAdmin

NOT_KEPT = "Its query was not found in query.results: what was sent beside the answer is not known."
OTHER_LIST = "The newest query of this id has other candidates, or another text, than the answer."
NO_SCORES = "The candidates come without an engine's scores, so the frames alone decide: alpha is 0."


@dataclass(frozen=True, slots=True)
class Sources:
    """Where things are read from: the topics, or recorded files in place of one of them."""

    searcher: Searcher
    answers: Path | None = None
    events: Path | None = None
    uploads: Path | None = None
    model_id: str | None = None

    def answer(self, query_id: str) -> QueryReranked:
        """Return the newest answer to a query. Raises :class:`ExplainError` where there is none."""
        if self.answers is None:
            return self.searcher.answer(query_id, self.model_id)
        found = [each for each in answers_of_file(self.answers, self.model_id) if each.query_id == query_id]
        if not found:
            raise ExplainError(f"{self.answers}: there is no answer to query {query_id!r}")
        return max(found, key=lambda each: each.reranked_at)

    def query(self, query_id: str) -> tuple[QueryResults, dict[str, str]] | None:
        """Return the query of an id with its candidates' own addresses; None where it is not found."""
        if self.events is None:
            return None if self.answers is not None else self.searcher.query(query_id)
        found = None
        for place, line in lines_of(self.events):
            try:
                event = JSON.decode(QueryResults, line)
            except InvalidEvent as error:
                raise ExplainError(f"{place}: expected a query.results event, found {error}") from None
            if event.query_id == query_id:
                found = event, uris_of(line)
        return found

    def known(self, clip_ids: Sequence[str], model_id: str) -> Known:
        """Return what is known of clips beside the store."""
        if self.uploads is not None:
            return Known(uploads_of_file(self.uploads, clip_ids), searched=str(self.uploads))
        return self.searcher.known(clip_ids, model_id)


def of_answer(settings: ExplainSettings, query_id: str, sources: Sources, *, top: int, frames: bool) -> Explanation:
    """Explain the answer to a query. Without a model in the settings, nothing is read from the store."""
    answered = sources.answer(query_id)
    question = sources.query(query_id)
    notes = []
    if question is None:
        notes = [NOT_KEPT] if sources.answers is None else []
    elif not _is_same_list(question[0], answered):
        notes = [OTHER_LIST]
    shown = [each.clip_id for each in answered.results[:top]]
    recomputed = None
    if settings.model:
        ordered = sorted(answered.results, key=lambda each: each.initial_rank)
        candidates = [_candidate(each) for each in ordered]
        recomputed = _recompute(settings, method_of(answered), answered.query, candidates, shown)
    uris = question[1] if question else {}
    model_id = recomputed.model_id if recomputed else answered.model_id
    known = sources.known(shown, model_id)
    return _explained(settings, answered, recomputed, known, uris, notes, served=True, top=top, frames=frames)


def of_text(
    settings: ExplainSettings, text: str, given: Given, sources: Sources, *, engine: str, top: int, frames: bool
) -> Explanation:
    """Rerank candidates for a text now, as the service would, and explain that. Raises :class:`ExplainError`."""
    settings.named_model()
    method, notes = settings.method, []
    if not given.has_scores:
        method, notes = replace(method, alpha=0.0), [NO_SCORES]
    event = QueryResults(query_id="now", query=text, engine=engine, issued_at=now(), results=given.candidates)
    try:
        event = JSON.decode(QueryResults, JSON.encode(event))  # the limits of queries hold here too
    except (InvalidEvent, UnicodeEncodeError) as error:
        raise ExplainError(f"--query: {error}") from None
    recomputed = _recompute(settings, method, text, event.results, [each.clip_id for each in event.results])
    made = answer_of(method, event, [*recomputed.results.values()], recomputed.model_id)
    known = sources.known([each.clip_id for each in made.results[:top]], recomputed.model_id)
    return _explained(settings, made, recomputed, known, given.uris, notes, served=False, top=top, frames=frames)


def _is_same_list(question: QueryResults, answered: QueryReranked) -> bool:
    given = {each.clip_id: each.score for each in question.results}
    return question.query == answered.query and given == {each.clip_id: each.initial_score for each in answered.results}


def _candidate(result: RerankedCandidate) -> Candidate:
    return Candidate(clip_id=result.clip_id, score=result.initial_score)


def _recompute(
    settings: ExplainSettings, method: Method, text: str, candidates: Sequence[Candidate], keep: Sequence[str]
) -> Now:
    """Rerank candidates against the store as it is now, with this process's model."""
    encoder = load_model(settings, sides=["texts"])
    vector = TextVectors(encoder).of(text)
    with contextlib.closing(_opened(settings)) as admin:
        snapshot = Snapshot(admin, encoder.model_id, keep)
        reranked = rerank_candidates(method, candidates, vector, snapshot)
        unread = [clip_id for clip_id in keep if clip_id not in snapshot.kept]
        for start in range(0, len(unread), PAGE_RECORDS):
            snapshot.look_up(unread[start : start + PAGE_RECORDS], len(vector))
    records = {clip_id: entry.embedding for clip_id, entry in snapshot.kept.items() if entry.embedding is not None}
    curves = {clip_id: curve(vector, record) for clip_id, record in records.items()}
    return Now(encoder.model_id, {each.clip_id: each for each in reranked.results}, snapshot.kept, curves)


def _opened(settings: ExplainSettings) -> StoreAdmin:
    try:
        return open_admin(settings.store, options=StoreOptions.of(settings))
    except (StoreError, StoreUnavailableError) as error:
        raise invalid_setting("store", error) from None


def _explained(
    settings: ExplainSettings,
    answered: QueryReranked,
    recomputed: Now | None,
    known: Known,
    uris: Mapping[str, str],
    notes: Sequence[str],
    *,
    served: bool,
    top: int,
    frames: bool,
) -> Explanation:
    shown = answered.results[:top]
    deleted = {each.clip_id for each in shown if _is_deleted(each.clip_id, known, recomputed)}
    pictures: dict[str, Frame] = {}
    if frames:
        with Pictures(settings) as made:
            left = [each for each in shown if each.clip_id not in deleted]
            pictures = dict(_frames(made, left, recomputed, known, uris))
    return Explanation(answered, served, top, recomputed, known, pictures, deleted, notes)


def _is_deleted(clip_id: str, known: Known, given: Now | None) -> bool:
    """Tell whether the topic's last record of a clip is a delete, or the store has a tombstone of it."""
    upload = known.uploads.get(clip_id)
    entry = given.entries.get(clip_id) if given else None
    return (upload is not None and upload.uri is None) or (entry is not None and entry.state is State.DELETED)


def _frames(
    pictures: Pictures,
    results: Sequence[RerankedCandidate],
    given: Now | None,
    known: Known,
    uris: Mapping[str, str],
) -> Iterator[tuple[str, Frame]]:
    for each in results:
        moment = each.moment_ms
        if moment is None and given is not None and each.clip_id in given.results:
            moment = given.results[each.clip_id].moment_ms
        upload = known.uploads.get(each.clip_id)
        uri = upload.uri if upload is not None else uris.get(each.clip_id)
        if moment is None:
            yield each.clip_id, Frame(why="no frame of it was scored")
        elif uri is None:
            yield each.clip_id, Frame(why=f"its address is not known: there is no upload of it in {known.searched}")
        else:
            yield each.clip_id, pictures.at(uri, moment)
