"""Reranks recorded result lists: offline, or by the running service.

Both ways share the code that reads, scores, blends and ranks, and both return ``query.reranked`` events, whose JSON
numbers are exact to the last bit. A frame's cosine depends only on the two vectors
(:class:`streamer.scoring.FrameScorer`). A text's vector depends, in its last bits, on the other texts of its batch; so
each text is encoded alone here, and through Kafka one query is sent at a time, which the service therefore processes
alone.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from streamer.codec import JSON
from streamer.encoders import EncoderError
from streamer.evaluation.questions import ReplayError
from streamer.evaluation.sources import OneSource, Source
from streamer.evaluation.trec import Ranking
from streamer.evaluation.trec_rows import word
from streamer.events import InvalidEvent, QueryReranked, QueryResults, Status, now
from streamer.kafka import Output
from streamer.kafka.dead_letters import GROUP_HEADER
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers.request import Requester
from streamer.kafka.records import text_of
from streamer.method import answer, method_of, rerank_candidates
from streamer.store import StoreUnavailableError
from streamer.topology import QUERY_RERANKED, QUERY_RESULTS, RERANK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from streamer.codec import Codec
    from streamer.encoders import Encoder
    from streamer.kafka.records import Record
    from streamer.match import Bank
    from streamer.method import ClipScorer, Method
    from streamer.settings import Connection

_REPLAYED = re.compile(r"replay-[0-9a-f]{8}\.")
"""What the query ids begin with that :func:`through_kafka` publishes."""
_LARGEST = 1e38
"""Scores of a run are clipped to this, so that the next smaller float32 exists."""


class TextVectors:
    """Encodes each query alone; the last vector is cached, because a query may be repeated."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._last: tuple[str, npt.NDArray[np.float32]] | None = None

    def of(self, query: str) -> npt.NDArray[np.float32]:
        """Return the vector (d,) of a query. Raises :class:`ReplayError` if the encoder fails."""
        if self._last is None or self._last[0] != query:
            try:
                self._last = query, self._encoder.encode_texts([query])[0]
            except EncoderError as error:
                raise ReplayError(f"{query!r} cannot be encoded: {error}") from None
        return self._last[1]


def writable(questions: Iterable[QueryResults], out: Path, tag: str) -> list[QueryResults]:
    """Return the questions if a run of them can be written, so that nothing is scored in vain.

    Raises :class:`ReplayError` for a query id that occurs twice and for a folder that does not exist, and
    :class:`~streamer.evaluation.trec_rows.TrecError` for a name that a run cannot hold.
    """
    if not out.resolve().parent.is_dir():
        raise ReplayError(f"{out}: No such folder")
    asked = list(questions)
    seen: set[str] = set()
    word(out, tag)
    for question in asked:
        if question.query_id in seen:
            raise ReplayError(_twice(question.query_id))
        seen.add(question.query_id)
        word(out, question.query_id, is_first=True)
        for candidate in question.results:
            word(out, candidate.clip_id)
    return asked


def _twice(query_id: str) -> str:
    return f"query id {query_id} occurs twice, but a run has each topic only once"


def offline(
    method: Method,
    questions: Iterable[QueryResults],
    encoder: Encoder,
    store: ClipScorer,
    bank: Bank | None = None,
) -> Iterator[QueryReranked]:
    """Rerank queries by ``method`` as the service would, with their match if there is a bank.

    Raises :class:`~streamer.store.StoreUnavailableError` and :class:`ReplayError`.
    """
    texts = TextVectors(encoder)
    for question in questions:
        reranked = rerank_candidates(method, question.results, texts.of(question.query), store, bank=bank)
        if reranked.unavailable:
            raise StoreUnavailableError(reranked.why)
        yield answer(method, question, reranked.results, encoder.model_id, match=reranked.match)


def through_kafka(
    settings: Connection,
    questions: Iterable[QueryResults],
    *,
    required: Mapping[str, object],
    timeout: float,
    codec: Codec = JSON,
) -> Iterator[QueryReranked]:
    """Send queries to the running reranker, one at a time, and wait up to ``timeout`` seconds for each result.

    They are sent with their own query ids, ``replay-<token>.<query id>``, so that a platform can distinguish them from
    its users' queries; results have the original ids again. The service applies its own method, whose parameters in
    ``required`` (some of :class:`~streamer.method.Method`'s, by name) must have the given values. Raises
    :class:`ReplayError`, :class:`~streamer.kafka.readers.request.RequestError`,
    :class:`~streamer.kafka.readers.topic_reader.ReadError`, and :class:`~streamer.settings.SettingsError` where
    several consumer groups answer and none of them is chosen.
    """
    prefix = f"replay-{secrets.token_hex(4)}."
    source = OneSource(group=settings.chosen_group(RERANK.group), advice="all rerankers of a group need the same model")

    def is_meant(record: Record) -> bool:
        if not (record.key or b"").startswith(prefix.encode()):
            return False
        if group := text_of(record.headers, GROUP_HEADER):
            return source.is_meant(group)
        # Replies to earlier requests too: another group may be slower.
        answered = codec.decode(QueryReranked, record.value)
        return source.admits(Source(text_of(record.headers, GROUP), answered.model_id))

    requester = Requester(settings, requests=QUERY_RESULTS, replies=QUERY_RERANKED, is_meant=is_meant)
    with contextlib.closing(requester):
        for question in questions:
            try:
                asked = msgspec.structs.replace(question, query_id=prefix + question.query_id, issued_at=now())
            except InvalidEvent as error:
                raise ReplayError(f"{question.query_id}: {error}") from None
            output = Output(settings.topic(QUERY_RESULTS), asked.query_id.encode(), codec.encode(asked), ())
            found = codec.decode(QueryReranked, requester.request(output, timeout=timeout).value)
            _check(required, question, found)
            yield msgspec.structs.replace(found, query_id=question.query_id)


def is_replayed(query_id: str) -> bool:
    """Return whether :func:`through_kafka` published the query."""
    return _REPLAYED.match(query_id) is not None


def _check(required: Mapping[str, object], question: QueryResults, found: QueryReranked) -> None:
    if found.degraded is not None:
        raise ReplayError(f"{question.query_id} was degraded: {found.degraded}")
    used = asdict(method_of(found))
    for name, asked in required.items():
        if asked != used[name]:
            raise ReplayError(f"the running reranker has {name} {used[name]}, not {asked}")


def ranking_of(reranked: QueryReranked) -> Ranking:
    """Return reranked results as a run's ranking, whose order every tool that sorts by score reproduces.

    Tools break ties differently, and some compare as float32. A score is therefore the original one if it is, as
    float32, less than the score before it, else the next smaller float32. Candidates below the depth have no score and
    get 1, 2, 3 ... less than the last score.
    """
    results = reranked.results
    within = [result.score for result in results if result.score is not None]
    last = within[-1] if within else 0.0
    below = last - np.arange(1, len(results) - len(within) + 1)
    scores = np.concatenate([within, below]).clip(-_LARGEST, _LARGEST)
    if (np.diff(scores.astype(np.float32)) >= 0).any():
        for position in range(1, len(scores)):
            before = np.float32(scores[position - 1])
            if np.float32(scores[position]) >= before:
                scores[position] = np.nextafter(before, np.float32(-np.inf))
    return Ranking(tuple(result.clip_id for result in results), scores)


class Replay:
    """A run made of reranked queries, with counts for the summary."""

    def __init__(self, answers: Iterable[QueryReranked]) -> None:
        """Add all reranked queries. Raises :class:`ReplayError` if a query id occurs twice or nothing was reranked."""
        self.topics: dict[str, Ranking] = {}
        self._statuses: Counter[Status] = Counter()
        self._matches: list[float] = []
        self._match_is = ""
        self._method = ""
        for each in answers:
            if each.query_id in self.topics:
                raise ReplayError(_twice(each.query_id))
            self.topics[each.query_id] = ranking_of(each)
            self._statuses.update(result.status for result in each.results)
            self._method = f"{method_of(each)}, model {each.model_id}"
            if isinstance(each.match, float):
                self._matches.append(each.match)
                self._match_is = f"{each.match_kind}, bank {each.match_bank}"
        if not self.topics:
            raise ReplayError("there are no queries to replay")
        if not self._statuses[Status.RERANKED]:
            raise ReplayError(f"none of the candidates is embedded ({self._method}); see streamer store stats")

    def summary(self) -> str:
        """Return a summary in one line."""
        counted = ", ".join(f"{self._statuses[status]:,} {status.replace('_', ' ')}" for status in Status)
        text = f"{len(self.topics):,} topics ({self._method}): {counted}"
        if not self._matches:
            return text
        low, middle, high = np.quantile(self._matches, (0.1, 0.5, 0.9)).tolist()
        quantiles = f"10 % below {low:.3g}, 50 % below {middle:.3g}, 90 % below {high:.3g}"
        return f"{text}; match of {len(self._matches):,} ({self._match_is}): {quantiles}"
