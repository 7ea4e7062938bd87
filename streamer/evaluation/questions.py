"""An engine's result lists as ``query.results`` events: from a TREC run, a file or the topic itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import structlog

from streamer.codec import JSON
from streamer.evaluation.files import DAMAGED, opened
from streamer.evaluation.sources import OneSource
from streamer.evaluation.trec import joined
from streamer.events import (
    MAX_ENGINE_CHARS,
    MAX_EVENT_BYTES,
    MAX_RESULTS,
    Candidate,
    InvalidEvent,
    QueryReranked,
    QueryResults,
    now,
)
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.kafka.records import text_of
from streamer.topology import QUERY_RERANKED, QUERY_RESULTS, REPLAY, RERANK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from streamer.codec import Codec
    from streamer.evaluation.trec import Run
    from streamer.settings import Connection
    from streamer.topology import Tool

log = structlog.get_logger()
E = TypeVar("E", QueryResults, QueryReranked)

_CHOOSE_MODEL = "--model-id chooses one"


class ReplayError(Exception):
    """A replay that is impossible, or that would differ from the request; the message is one line."""


def questions_of(run: Run, topics: Mapping[str, str]) -> Iterator[QueryResults]:
    """Make an event for each topic of a run: its results best first, at most the 5,000 that an event may have.

    Raises :class:`ReplayError` for a topic without a text in ``topics``.
    """
    for topic, ranking in run.topics.items():
        text = topics.get(joined(topic, topics))
        if text is None:
            raise ReplayError(f"topic {topic} of the run has no text among the {len(topics)} topics")
        best = ranking.ranked()
        shots, scores = best.shots[:MAX_RESULTS], best.scores[:MAX_RESULTS].tolist()
        results = [Candidate(clip_id=shot, score=score) for shot, score in zip(shots, scores, strict=True)]
        yield QueryResults(
            query_id=topic, query=text, engine=run.tag[:MAX_ENGINE_CHARS], issued_at=now(), results=results
        )


def events_of_file(path: Path, codec: Codec = JSON) -> Iterator[QueryResults]:
    """Read recorded events, one JSON object a line; raises :class:`ReplayError` with the line's number."""
    return _of_file(path, QueryResults, QUERY_RESULTS, codec)


def answers_of_file(path: Path, model_id: str | None = None, codec: Codec = JSON) -> Iterator[QueryReranked]:
    """Read recorded query.reranked events likewise, all of one model: ``model_id`` if given.

    Raises :class:`~streamer.settings.SettingsError` where there are several.
    """
    source = OneSource(model_id=model_id, advice=_CHOOSE_MODEL)
    return source.of((answer, "") for answer in _of_file(path, QueryReranked, QUERY_RERANKED, codec))


def _of_file(path: Path, model: type[E], name: str, codec: Codec) -> Iterator[E]:
    try:
        with opened(path) as file:
            number = 0
            while line := file.readline(MAX_EVENT_BYTES + 2):
                number += 1
                if line.strip():
                    try:
                        yield codec.decode(model, line.rstrip(b"\r\n"))
                    except InvalidEvent as error:
                        raise ReplayError(f"{path}:{number}: expected a {name} event, found {error}") from None
    except DAMAGED as error:
        raise ReplayError(f"{path}: expected a whole gzip file, found a damaged one ({error})") from error
    except OSError as error:
        raise ReplayError(f"{path}: {error.strerror or error}") from error


def events_of_topic(settings: Connection, codec: Codec = JSON, tool: Tool = REPLAY) -> Iterator[QueryResults]:
    """Read the events that are in the topic ``query.results`` now; invalid ones are skipped with a warning.

    ``tool`` is the command that reads. Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`.
    """
    return (event for event, _ in _of_topic(settings, QueryResults, QUERY_RESULTS, codec, tool))


def answers_of_topic(
    settings: Connection, model_id: str | None = None, codec: Codec = JSON, tool: Tool = REPLAY
) -> Iterator[QueryReranked]:
    """Read the events that are in the topic ``query.reranked`` now, likewise, all of one consumer group and model.

    They are those that the settings and ``model_id`` choose. Raises :class:`~streamer.settings.SettingsError` where
    there are several.
    """
    source = OneSource(group=settings.chosen_group(RERANK.group), model_id=model_id, advice=_CHOOSE_MODEL)
    return source.of(_of_topic(settings, QueryReranked, QUERY_RERANKED, codec, tool))


def _of_topic(settings: Connection, model: type[E], name: str, codec: Codec, tool: Tool) -> Iterator[tuple[E, str]]:
    with contextlib.closing(TopicReader(settings, settings.topic(name), tool)) as reader:
        for span in reader.spans():
            for record in reader.records(span):
                try:
                    yield codec.decode(model, record.value, record.key), text_of(record.headers, GROUP)
                except InvalidEvent as error:
                    log.warning("invalid event skipped", place=record.place, error=str(error))
