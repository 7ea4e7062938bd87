"""A search through a topic from its end: which offsets are read when, where it stops, and what explain finds by it."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.codec import JSON
from streamer.events import ClipEmbedded, ClipUploaded, QueryReranked, QueryResults
from streamer.explain.found import ExplainError, Upload
from streamer.explain.topics import Searcher
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers import newest
from streamer.kafka.readers.newest import backwards
from streamer.kafka.readers.topic_reader import Span
from streamer.kafka.records import Record
from streamer.settings import SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Iterator

bounds = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)
AT = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)


@given(st.lists(bounds, max_size=4), st.integers(1, 20))
def test_every_offset_is_in_exactly_one_round_and_newer_ones_are_in_earlier_rounds(
    given_bounds: list[list[int]], size: int
) -> None:
    spans = [Span(partition, begin, end) for partition, (begin, end) in enumerate(given_bounds)]
    rounds = list(backwards(spans, size))
    for span in spans:
        parts = [part for each in rounds for part in each if part.partition == span.partition]
        read = [offset for part in parts for offset in range(part.begin, part.end)]
        assert sorted(read) == list(range(span.begin, span.end))
        assert all(later.end == earlier.begin for earlier, later in itertools.pairwise(parts))
        assert all(0 < part.end - part.begin <= size for part in parts)
    longest = max((span.end - span.begin for span in spans), default=0)
    assert len(rounds) == -(-longest // size)


class Topics:
    """Topics in memory, behind the interface of the reader that goes through a real one."""

    def __init__(self) -> None:
        self.logs: dict[str, list[list[Record]]] = {}
        self.read: list[tuple[str, int]] = []

    def add(self, topic: str, event: Any, *, key: str | None = None, partition: int = 0, group: str = "g") -> None:
        log = self.logs.setdefault(topic, [[], []])[partition]
        name = key or getattr(event, "clip_id", None) or event.query_id
        headers = ((GROUP, group.encode()),)
        value = event if event is None or isinstance(event, bytes) else JSON.encode(event)
        when = AT + dt.timedelta(seconds=sum(map(len, self.logs[topic])))
        log.append(Record(topic, partition, len(log), name.encode(), value, headers, when))

    def reader(self, _settings: object, name: str, _tool: object) -> Reader:
        return Reader(self, name)


class Reader:
    def __init__(self, topics: Topics, name: str) -> None:
        self._topics, self._name = topics, name

    def spans_between(self, since: dt.datetime | None, until: dt.datetime | None) -> list[Span]:
        spans = []
        for partition, log in enumerate(self._topics.logs.get(self._name, [])):
            begin = sum(since is not None and record.timestamp < since for record in log)
            end = sum(until is None or record.timestamp < until for record in log)
            spans.append(Span(partition, begin, end))
        return spans

    def records(self, span: Span) -> Iterator[Record]:
        for record in self._topics.logs[self._name][span.partition][span.begin : span.end]:
            self._topics.read.append((self._name, record.offset))
            yield record

    def close(self) -> None:
        pass


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    found = Topics()
    monkeypatch.setattr(newest, "TopicReader", found.reader)
    monkeypatch.setattr(newest, "OFFSETS_AT_ONCE", 3)
    return found


def searcher(seconds: float = 60, **more: Any) -> Searcher:
    settings = load({key: more.pop(key) for key in ("group_suffix", "group_rerank") if key in more})
    return Searcher(settings, seconds, **more)


def answer(query_id: str, number: int = 0, model_id: str = "m") -> QueryReranked:
    at = AT + dt.timedelta(seconds=number)
    return QueryReranked(
        query_id=query_id, query=f"text {number}", engine="e", issued_at=AT, reranked_at=at, model_id=model_id,
        alpha=0.4, depth=9, normalization="minmax", degraded=None, results=[],
    )  # fmt: skip


def test_the_newest_answer_is_found_without_reading_what_is_older(topics: Topics) -> None:
    for number in range(20):
        topics.add("query.reranked", answer("q", number))
    assert searcher().answer("q").query == "text 19"
    assert sorted(offset for _, offset in topics.read) == [17, 18, 19]


def test_an_old_answer_is_found_too_and_none_is_an_error_that_says_what_was_searched(topics: Topics) -> None:
    topics.add("query.reranked", answer("q"), partition=1)
    for number in range(10):
        topics.add("query.reranked", answer(f"other {number}"))
    topics.add("query.reranked", b"no event", key="q")
    assert searcher().answer("q").query_id == "q"
    with pytest.raises(ExplainError, match=r"'none' in the newest 12 records of query\.reranked; is it older"):
        searcher().answer("none")
    with pytest.raises(ExplainError, match=r"where the search ended after 1e-09 s; --timeout"):
        searcher(1e-9).answer("none")


def test_the_times_limit_where_an_answer_is_searched(topics: Topics) -> None:
    for number in range(9):
        topics.add("query.reranked", answer("q", number))
    assert searcher(until=AT + dt.timedelta(seconds=6)).answer("q").query == "text 5"
    with pytest.raises(ExplainError, match=r"since 2026-12-01T00:01:00"):
        searcher(since=AT + dt.timedelta(minutes=1)).answer("q")


def test_of_several_groups_and_models_one_must_be_chosen(topics: Topics) -> None:
    topics.add("query.reranked", answer("q", 1, "old"), group="one")
    topics.add("query.reranked", answer("q", 2, "new"), group="two")
    with pytest.raises(SettingsError, match="several consumer groups have answered: one, two"):
        searcher().answer("q")
    assert searcher().answer("q", "old").model_id == "old"
    assert searcher(group_rerank="two").answer("q").model_id == "new"
    with pytest.raises(SettingsError, match="there are no answers of third"):
        searcher().answer("q", "third")


def test_a_query_comes_with_the_addresses_of_its_candidates(topics: Topics) -> None:
    event = b'{"query_id": "q", "query": "t", "engine": "e", "issued_at": "2026-12-01T00:00:00Z", "results": '
    event += b'[{"clip_id": "a", "score": 1, "uri": "https://h/a"}, {"clip_id": "b", "score": 0}]}'
    topics.add("query.results", event, key="q")
    found = searcher().query("q")
    assert found is not None
    assert isinstance(found[0], QueryResults)
    assert found[1] == {"a": "https://h/a"}
    assert searcher().query("none") is None


def test_a_clips_last_upload_or_delete_counts_and_when_its_model_was_done(topics: Topics) -> None:
    def upload(clip_id: str, number: int, partition: int = 0) -> None:
        uri = f"file:///{clip_id}{number}"
        topics.add("clips.uploaded", ClipUploaded(clip_id=clip_id, uri=uri, uploaded_at=AT), partition=partition)

    def embedded(clip_id: str, model_id: str, second: int) -> None:
        at = AT + dt.timedelta(seconds=second)
        event = ClipEmbedded(
            clip_id=clip_id, model_id=model_id, frames=1, duration_ms=1, uploaded_at=AT, embedded_at=at
        )
        topics.add("clips.embedded", event)

    for number in range(3):
        upload("a", number)
    topics.add("clips.uploaded", b"no event", key="a")
    upload("b", 0)
    topics.add("clips.uploaded", None, key="b")
    upload("moved", 1)
    upload("moved", 2, partition=1)
    for second in range(5):
        embedded("a", "m", second)
    embedded("a", "another", 9)
    found = searcher().known(["a", "b", "moved", "never"], "m")
    assert found.uploads == {
        "a": Upload("file:///a2", AT),
        "b": Upload(None, None),
        "moved": Upload("file:///moved2", AT),
    }
    assert found.embedded == {"a": AT + dt.timedelta(seconds=4)}
    assert "records of clips.uploaded" in found.searched
