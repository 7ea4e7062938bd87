"""2,000 mutated records through the running services: each is answered or dead-lettered, once, and nothing restarts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from confluent_kafka import Producer
from hypothesis import HealthCheck, Phase, given, settings

from streamer.codec import JSON
from streamer.events import MAX_ID_BYTES, ClipUploaded, InvalidEvent, QueryResults, Reason, now
from streamer.settings import load
from tests.fuzz.mutations import Mutated, mutated, queries, uploads
from tests.support.driver import (
    EMBEDDED,
    RERANKED,
    RESULTS,
    UPLOADED,
    Bus,
    Record,
    Service,
    apply_topics,
    check_caused,
    environment,
)
from tests.support.footage import tiny_footage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from streamer.local_kafka.broker import LocalKafka

COUNT = 1_000
BROKERS_LIMIT = 2_097_152
"""``max.message.bytes`` of the input topics."""
NUMBER = "ce_number"
"""The header that tells which record caused an output; it is carried on."""
ABOUT_THE_CLIP = {Reason.URI_REFUSED, Reason.NOT_FOUND, Reason.FETCH_FAILED, Reason.CLIP_TOO_LARGE, Reason.NO_VIDEO,
                  Reason.DECODE_FAILED}  # fmt: skip


def drawn(records: SearchStrategy[Mutated]) -> list[Record]:
    """Draw records, the same ones in every run, and number them."""
    found: list[Mutated] = []

    @settings(
        max_examples=COUNT,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(records)
    def draw(record: Mutated) -> None:
        found.append(record)

    draw()
    assert len(found) >= COUNT
    return [
        # A header without a value, which the broker passes on, is None here.
        Record(each.key, each.value, ((NUMBER, b"%d" % number), *cast("tuple[tuple[str, bytes], ...]", each.headers)))
        for number, each in enumerate(found[:COUNT])
    ]


def number_of(record: Record) -> int:
    return int(record.header(NUMBER))


def decode(model: type[ClipUploaded | QueryResults], record: Record) -> ClipUploaded | QueryResults:
    if model is ClipUploaded:
        return JSON.decode(ClipUploaded, record.value, record.key)
    return JSON.decode(QueryResults, record.value, record.key)


def refusal(model: type[ClipUploaded | QueryResults], record: Record) -> Reason | None:
    try:
        decode(model, record)
    except InvalidEvent as invalid:
        return invalid.reason
    return None


def is_delete(record: Record) -> bool:
    return record.value is None and record.key is not None


def refusal_of_delete(record: Record) -> Reason | None:
    """Say why a delete cannot be applied: its key is its clip's id and must be one."""
    assert record.key is not None
    try:
        record.key.decode()
    except UnicodeDecodeError:
        return Reason.WRONG_TYPE
    return None if 1 <= len(record.key) <= MAX_ID_BYTES else Reason.LIMIT_EXCEEDED


def check_dead_letters(letters: Iterable[Record], sent: Iterable[Record]) -> dict[int, Reason]:
    """Show that dead letters hold their originals untouched, and return each one's reason by its record's number."""
    originals = {record.place: record for record in sent}
    reasons: dict[int, Reason] = {}
    for letter in letters:
        ours = Counter(name for name, _ in letter.headers if name.startswith("dlq."))
        assert set(ours.values()) == {1}, "a sender's dlq.* headers must not stand beside ours"
        place = letter.header("dlq.topic"), int(letter.header("dlq.partition")), int(letter.header("dlq.offset"))
        original = originals[place]
        assert (letter.key, letter.value) == (original.key, original.value)
        kept = [header for header in original.headers if not header[0].startswith("dlq.")]
        assert [header for header in letter.headers if not header[0].startswith("dlq.")] == kept
        assert number_of(original) not in reasons, "dead-lettered twice"
        reasons[number_of(original)] = Reason(letter.header("dlq.reason"))
        assert letter.header("dlq.error").isprintable()
    return reasons


def check_answers(outputs: list[Record], sent: dict[int, Record], expected: set[int], topic: str) -> None:
    """Show that the expected records, each once, and no others caused an output."""
    assert sorted(map(number_of, outputs)) == sorted(expected)
    for output in outputs:
        cause = sent[number_of(output)]
        event = decode(ClipUploaded if topic == EMBEDDED else QueryResults, cause)
        identifier = event.clip_id if isinstance(event, ClipUploaded) else event.query_id
        check_caused(output, replace(cause, key=identifier.encode()), topic)
        if isinstance(event, QueryResults):
            check_permutation(event, output)


def check_permutation(event: QueryResults, output: Record) -> None:
    results, given_ = output.event["results"], event.results
    assert output.event["degraded"] is None
    assert sorted(result["clip_id"] for result in results) == sorted(candidate.clip_id for candidate in given_)
    for rank, result in enumerate(results, start=1):
        assert result["rank"] == rank
        assert result["initial_score"] == given_[result["initial_rank"] - 1].score
        assert (result["score"] is None) == (result["status"] == "below_depth")


def test_2000_mutated_records_are_answered_or_dead_lettered_by_the_same_two_processes(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    uris = [video.path.as_uri() for video in tiny_footage(clips)]
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    # The driver's own takes no records as large as the topics do.
    bus._producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": BROKERS_LIMIT, "linger.ms": 5}
    )
    variables = environment(bus, tmp_path / "store", [clips], STREAMER_FETCH_RETRY_TIMEOUT="0.5")
    apply_topics(variables, tmp_path)

    with Service("embed", variables, tmp_path) as embedder, Service("rerank", variables, tmp_path) as reranker:
        nowhere = [(clips / "missing.mp4").as_uri(), "https://127.0.0.1/a.mp4", "file:///etc/passwd"]
        # A compacted topic takes no record without a key.
        mutated_uploads = [
            replace(record, key=b"" if record.key is None else record.key)
            for record in drawn(mutated(uploads([*uris, *nowhere])))
        ]
        mutated_queries = drawn(mutated(queries(["q1", "clip-7", "a/b c%20?é", "-", "unknown"])))
        services = [embedder.await_ready(seconds=150), reranker.await_ready(seconds=150)]
        sent_uploads = bus.publish(UPLOADED, mutated_uploads)
        sent_queries = bus.publish(RESULTS, mutated_queries)
        bus.await_group("streamer-embed", UPLOADED, seconds=120, alive=services)
        bus.await_group("streamer-rerank", RESULTS, seconds=120, alive=services)
        for service in services:
            service.stop()

    check_uploads(bus, sent_uploads, uris)
    check_queries(bus, sent_queries)


def check_uploads(bus: Bus, sent: list[Record], uris: list[str]) -> None:
    by_number = {number_of(record): record for record in sent}
    died = check_dead_letters(bus.read(f"{UPLOADED}.dlq"), sent)
    refused = {
        number: reason
        for number, record in by_number.items()
        if (reason := refusal_of_delete(record) if is_delete(record) else refusal(ClipUploaded, record))
    }
    deleted = {number for number, record in by_number.items() if is_delete(record)} - refused.keys()
    latest = now() + timedelta(seconds=load().max_clock_skew)
    refused |= {
        number: Reason.FROM_THE_FUTURE
        for number in by_number.keys() - deleted - refused.keys()
        if JSON.decode(ClipUploaded, by_number[number].value).uploaded_at > latest
    }
    assert {number: died.get(number) for number in refused} == refused
    of_their_clip = {number: reason for number, reason in died.items() if number not in refused}
    assert set(of_their_clip.values()) <= ABOUT_THE_CLIP
    embedded = by_number.keys() - deleted - died.keys()
    check_answers(bus.read(EMBEDDED), by_number, embedded, EMBEDDED)
    whole = {
        number
        for number in by_number.keys() - deleted - refused.keys()
        if JSON.decode(ClipUploaded, by_number[number].value).uri in uris
    }
    assert whole <= embedded
    assert min(len(deleted), len(refused), len(of_their_clip), len(whole)) >= 5, "a kind was not tried"


def check_queries(bus: Bus, sent: list[Record]) -> None:
    by_number = {number_of(record): record for record in sent}
    refused = {number: reason for number, record in by_number.items() if (reason := refusal(QueryResults, record))}
    assert check_dead_letters(bus.read(f"{RESULTS}.dlq"), sent) == refused
    answered = by_number.keys() - refused.keys()
    check_answers(bus.read(RERANKED), by_number, answered, RERANKED)
    assert min(len(refused), len(answered)) >= 100, "a kind was not tried"
