"""Finds in the topics what is to be explained, by the reader outside any group; newest records first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from streamer.codec import JSON
from streamer.evaluation.sources import OneSource, Source
from streamer.events import ClipEmbedded, ClipUploaded, InvalidEvent, QueryReranked, QueryResults
from streamer.explain.found import ExplainError, Known, Upload, uris_of
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers.newest import NewestFirst
from streamer.kafka.records import text_of
from streamer.topology import CLIPS_EMBEDDED, CLIPS_UPLOADED, EXPLAIN, QUERY_RERANKED, QUERY_RESULTS, RERANK

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence

    from streamer.codec import Codec
    from streamer.kafka.records import Record
    from streamer.settings import Connection

log = structlog.get_logger()
T = TypeVar("T")
E = TypeVar("E", ClipUploaded, ClipEmbedded, QueryResults, QueryReranked)

ADVICE = "--model-id chooses one"


@dataclass(frozen=True, slots=True)
class Searcher:
    """Searches the topics of an installation; ``seconds`` bounds the search of each.

    ``since`` and ``until`` limit the records of queries and of answers, by their own times, which are those of the
    queries where the reranker's settings do not say otherwise. All methods raise
    :class:`~streamer.kafka.readers.topic_reader.ReadError`.
    """

    settings: Connection
    seconds: float
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    codec: Codec = JSON

    def answer(self, query_id: str, model_id: str | None = None) -> QueryReranked:
        """Return the newest answer to a query, of the consumer group and model that were chosen.

        Raises :class:`ExplainError` where there is none, :class:`~streamer.settings.SettingsError` where several groups
        or models have answered and none was chosen.
        """
        chosen = self.settings.chosen_group(RERANK.group)
        source = OneSource(group=chosen, model_id=model_id, advice=ADVICE)
        search = self._search(QUERY_RERANKED, timed=True)
        for records in search.rounds(_of_key(query_id)):
            found = [
                event
                for record in records
                if (event := self._decoded(QueryReranked, record)) and event.query_id == query_id
                if source.admits(Source(text_of(record.headers, GROUP), event.model_id))
            ]
            if found:
                return max(found, key=lambda each: each.reranked_at)
        list(source.of(()))  # says whose answers there are, where there are others
        raise ExplainError(f"there is no answer to query {query_id!r} in {search.described()}{_advice(search)}")

    def query(self, query_id: str) -> tuple[QueryResults, dict[str, str]] | None:
        """Return the newest query of that id, with the addresses that its candidates state; None if it is not found."""
        search = self._search(QUERY_RESULTS, timed=True)
        for records in search.rounds(_of_key(query_id)):
            found = [
                (event, record)
                for record in records
                if (event := self._decoded(QueryResults, record)) and event.query_id == query_id
            ]
            if found:
                event, record = max(found, key=lambda each: each[0].issued_at)
                return event, uris_of(record.value)
        return None

    def known(self, clip_ids: Sequence[str], model_id: str) -> Known:
        """Return the newest uploads (or deletes) of clips, and when this model's records of them were announced.

        Clips that are not found before the time is over are not in the result.
        """
        uploads = self._search(CLIPS_UPLOADED)
        found = Known(uploads=self._newest(uploads, clip_ids, self._upload), searched=uploads.described())

        def embedded_at(record: Record) -> dt.datetime | None:
            event = self._decoded(ClipEmbedded, record)
            return event.embedded_at if event and event.model_id == model_id else None

        found.embedded = self._newest(self._search(CLIPS_EMBEDDED), clip_ids, embedded_at)
        return found

    def _upload(self, record: Record) -> Upload | None:
        if not record.value:
            return Upload(None, None)
        event = self._decoded(ClipUploaded, record)
        return Upload(event.uri, event.uploaded_at) if event else None

    def _newest(self, search: NewestFirst, clip_ids: Sequence[str], read: Callable[[Record], T | None]) -> dict[str, T]:
        """Return what ``read`` makes of each clip's newest record of which it makes anything, until all are found."""
        missing = {clip_id.encode(): clip_id for clip_id in clip_ids}
        found: dict[str, T] = {}
        if not missing:
            return found
        for records in search.rounds(lambda record: record.key in missing):
            latest: dict[bytes, Record] = {}
            for record in records:
                value = read(record)
                if value is None or record.key is None:
                    continue
                other = latest.get(record.key)
                if other is None or other.partition == record.partition or other.timestamp <= record.timestamp:
                    latest[record.key] = record
                    found[missing[record.key]] = value
            for key in latest:
                del missing[key]
            if not missing:
                break
        return found

    def _search(self, topic: str, *, timed: bool = False) -> NewestFirst:
        since, until = (self.since, self.until) if timed else (None, None)
        name = self.settings.topic(topic)
        return NewestFirst(self.settings, name, EXPLAIN, seconds=self.seconds, since=since, until=until)

    def _decoded(self, model: type[E], record: Record) -> E | None:
        try:
            return self.codec.decode(model, record.value, record.key)
        except InvalidEvent as error:
            log.warning("invalid event skipped", place=record.place, error=str(error))
            return None


def _of_key(query_id: str) -> Callable[[Record], bool]:
    """Return a filter for the records of one key, and for those without a key, which the codec allows too."""
    keys = {None, query_id.encode()}
    return lambda record: record.key in keys


def _advice(search: NewestFirst) -> str:
    if search.is_whole:
        return "; is it older than the topic keeps, or than --since?"
    return "; --timeout lets it search longer, --since and --until limit where"
