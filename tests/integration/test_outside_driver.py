"""The service seen from outside: real Kafka, its own commands, and every number worked out a second time."""

from __future__ import annotations

import random
import secrets
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import pytest

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
    check_dead_letter,
    environment,
    limit,
    model_dir,
    validator,
)
from tests.support.footage import real_footage, tiny_footage, varied_footage
from tests.support.malformed import check_reasons, malformed, query_faults, upload_faults
from tests.support.recompute import Method, Oracle, Ranking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.support.malformed import Fault
    from tests.support.recompute import Video

    Results = list[dict[str, Any]]


class Kafka(Protocol):
    """The broker of the test session."""

    bootstrap_servers: str


@dataclass
class Platform:
    """A video platform: its bus, its clips and the settings that it gives the service.

    Attributes:
        bus: Where it publishes and reads.
        folder: For the logs and the store.
        variables: The environment of the service's commands.
        clips: The file that the store should hold of each clip id.

    """

    bus: Bus
    folder: Path
    variables: dict[str, str]
    clips: dict[str, Video] = field(default_factory=dict)

    @classmethod
    def start(cls, kafka: Kafka, prefix: str, folder: Path, allowed: Iterable[Path] = ()) -> Platform:
        """Create the topics; files may come from `folder` / "clips" and from where else is allowed."""
        clips = folder / "clips"
        clips.mkdir()
        bus = Bus(kafka.bootstrap_servers, prefix)
        variables = environment(bus, folder / "store", [clips, *allowed])
        apply_topics(variables, folder)
        return cls(bus, folder, variables)

    def run(self, command: str, **settings: str) -> Service:
        """Start a command with the platform's settings and some more."""
        return Service(command, self.variables | settings, self.folder)

    def upload(self, clips: Mapping[str, Video], embedder: Service, *, at: datetime | None = None) -> list[Record]:
        """Publish uploads and wait until the embedder has committed them."""
        records = [upload_record(clip_id, video, at or datetime.now(UTC)) for clip_id, video in clips.items()]
        sent = self.bus.publish(UPLOADED, records)
        self.bus.await_group("streamer-embed", UPLOADED, seconds=90, alive=[embedder])
        return sent

    def ask(self, queries: Iterable[Record], reranker: Service) -> dict[Record, Record]:
        """Publish query results; return the one reranked record that each of them caused."""
        sent = self.bus.publish(RESULTS, queries)
        self.bus.await_group("streamer-rerank", RESULTS, seconds=90, alive=[reranker])
        causes = {record.event["query_id"]: record for record in sent}
        outputs = [record for record in self.bus.read(RERANKED) if record.event["query_id"] in causes]
        assert Counter(record.event["query_id"] for record in outputs) == Counter(list(causes))
        return {causes[record.event["query_id"]]: record for record in outputs}

    def check_reranked(self, answers: Mapping[Record, Record], oracle: Oracle, method: Method) -> None:
        """Recompute every field of every answer from the files that the clips should be."""
        for cause, output in answers.items():
            check_caused(output, cause, RERANKED)
            asked, event = cause.event, output.event
            assert [event[name] for name in ("query", "engine")] == [asked[name] for name in ("query", "engine")]
            assert moment(event["issued_at"]) == moment(asked["issued_at"])
            assert moment(event["issued_at"]) <= moment(event["reranked_at"]) <= datetime.now(UTC)
            assert {name: event[name] for name in asdict(method)} == asdict(method)
            assert event["degraded"] is None
            known = {result["clip_id"] for result in asked["results"]} & self.clips.keys()
            records = {clip_id: oracle.video(self.clips[clip_id]) for clip_id in known}
            Ranking(oracle.text(asked["query"]), asked["results"], records, method).check(event["results"])


def moment(text: str) -> datetime:
    """Read a time that must name its zone."""
    time = datetime.fromisoformat(text)
    assert time.utcoffset() is not None
    return time


def trace() -> list[tuple[str, bytes]]:
    """Return a fresh trace, a cloud event's attributes, and a header that means nothing to the service."""
    span = f"00-{uuid.uuid4().hex}-{secrets.token_hex(8)}-01"
    return [
        ("traceparent", span.encode()),
        ("ce_id", uuid.uuid4().bytes_le.hex().encode()),
        ("ce_source", "/söurce".encode()),
        ("ce_tenant", "ténant".encode()),
        ("tracestate", b"rojo=1"),
        ("baggage", b"user=1"),
        ("x-shard", b"\x00\xff"),
    ]


def upload_record(clip_id: str, video: Video, at: datetime) -> Record:
    event = {
        "clip_id": clip_id,
        "uri": video.path.as_uri(),
        "uploaded_at": at.isoformat(),
        "attributes": {"language": "日本語", "channel": "7"},
        "checksum": {"unknown": ["to", "the", "service"]},
    }
    validator(UPLOADED).validate(event)
    return Record.of(clip_id, event, trace())


def query_record(query: str, results: Results, headers: Iterable[tuple[str, bytes]] | None = None) -> Record:
    query_id = uuid.uuid4().hex
    event = {
        "query_id": query_id,
        "query": query,
        "engine": "bm25-v3",
        "issued_at": datetime.now(UTC).isoformat(),
        "user_key": "opaque",
        "results": results,
        "page": 1,
    }
    validator(RESULTS).validate(event)
    return Record.of(query_id, event, trace() if headers is None else headers)


def results_of(clip_ids: Iterable[str], scores: Iterable[float]) -> Results:
    return [{"clip_id": clip, "score": score} for clip, score in zip(clip_ids, scores, strict=True)]


def every_kind_of_query(clip_ids: list[str], draw: random.Random) -> list[Record]:
    """Return query results of the kinds that engines and users produce, over clips known and unknown."""

    def shuffled(*more: str) -> list[str]:
        ids = [*clip_ids, *more]
        return draw.sample(ids, len(ids))

    def falling(count: int) -> list[float]:
        return sorted((draw.uniform(-5, 30) for _ in range(count)), reverse=True)

    strangers = [f"unknown-{index}" for index in range(150)]
    known = len(clip_ids)
    crowd = shuffled(*strangers)
    mixed = shuffled(*strangers[:6])
    huge = [1.5e308, 1e308, 3.0, 0.0, -1.7e308]
    return [
        query_record("a red disc on a white ground", results_of(shuffled(), falling(known))),
        query_record("赤い自転車に乗った男", results_of(shuffled(), falling(known))),
        query_record("un lapin géant 🐇 — «drôle»", results_of(mixed, falling(len(mixed)))),
        query_record("Blue square, " * 30, results_of(shuffled(), falling(known))),
        query_record("a man talking in a car", results_of(crowd, falling(len(crowd))), headers=[]),
        query_record("ties", results_of(mixed, [float(9 - index // 4) for index in range(len(mixed))])),
        query_record("all equal", results_of(shuffled(*strangers[:3]), [4.25] * (known + 3))),
        query_record("whole numbers", results_of(shuffled(), range(known // 2, known // 2 - known, -1))),
        query_record("not in order", results_of(mixed, draw.sample(falling(len(mixed)), len(mixed)))),
        query_record("huge scores", results_of(draw.sample(clip_ids, 5), huge)),
        query_record("one candidate", results_of(clip_ids[:1], [0.7])),
        query_record("one unknown candidate", results_of(strangers[:1], [-3.0])),
        query_record("only unknown ones", results_of(strangers[:9], [5.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 0.0, 0.0])),
        query_record("no result at all", []),
    ]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(model_dir())


@dataclass(frozen=True, slots=True)
class Library:
    """A platform whose clips of every kind are embedded, with its running embedder.

    Attributes:
        platform: Its `clips` are those that were uploaded.
        uploads: The records that did it.
        embedder: Still running.
        films: Further small files that may be uploaded.

    """

    platform: Platform
    uploads: list[Record]
    embedder: Service
    films: list[Video]


@pytest.fixture(scope="module")
def library(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    real = real_footage()
    film_folders = {video.path.parent for video in real.values()}
    folder = tmp_path_factory.mktemp("library")
    platform = Platform.start(kafka, f"t{secrets.token_hex(3)}.", folder, film_folders)
    with platform.run("embed") as embedder:
        made, films = varied_footage(folder / "clips"), tiny_footage(folder / "clips")
        longest = "漢" * (limit(UPLOADED, "clip_id", "maxLength") // len("漢".encode()))  # ids are limited in bytes
        platform.clips = made | real | {longest: made["plain"], "a/b c%20?é": made["b-frames"]}
        embedder.await_ready()
        yield Library(platform, platform.upload(platform.clips, embedder), embedder, films)
        embedder.stop()


METHODS = [
    Method(),
    Method(normalization="zscore", depth=5, missing="impute"),
    Method(normalization="none", alpha=0.25, depth=12, pooling="softmax:0.1"),
]


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.normalization)
def reranker(library: Library, request: pytest.FixtureRequest) -> Iterator[tuple[Service, Method]]:
    """One reranker after the other on the same topics, group and embeddings; the first with no knob turned."""
    method = request.param
    knobs = {
        "STREAMER_NORMALIZATION": method.normalization,
        "STREAMER_ALPHA": str(method.alpha),
        "STREAMER_DEPTH": str(method.depth),
        "STREAMER_MISSING": method.missing,
        "STREAMER_POOLING": method.pooling,
    }
    with library.platform.run("rerank", **({} if method == Method() else knobs)) as service:
        yield service.await_ready(), method
        service.stop()


def test_each_upload_is_embedded_once_with_the_frames_that_the_sampling_rule_takes(
    library: Library, oracle: Oracle
) -> None:
    platform = library.platform
    causes = {record.key: record for record in library.uploads}
    embedded = [record for record in platform.bus.read(EMBEDDED) if record.key in causes]
    assert Counter(record.key for record in embedded) == Counter(list(causes))
    for output in embedded:
        cause, event = causes[output.key], output.event
        check_caused(output, cause, EMBEDDED)
        clip_id = event["clip_id"]
        assert clip_id == cause.event["clip_id"]
        sampled = oracle.video(platform.clips[clip_id])
        assert event["frames"] == len(sampled.times), clip_id
        assert 1000 * sampled.last_time - 1 <= event["duration_ms"] <= 1000 * sampled.end + 1, clip_id
        assert moment(event["uploaded_at"]) == moment(cause.event["uploaded_at"])
        assert moment(event["uploaded_at"]) <= moment(event["embedded_at"]) <= datetime.now(UTC)
    assert len({record.event["model_id"] for record in embedded}) == 1
    assert not platform.bus.read(f"{UPLOADED}.dlq")


def test_every_reranked_number_is_what_open_clip_and_numpy_make_of_the_files(
    library: Library, reranker: tuple[Service, Method], oracle: Oracle
) -> None:
    platform, (service, method) = library.platform, reranker
    queries = every_kind_of_query(list(platform.clips), random.Random(method.depth))  # noqa: S311 - no secret
    answers = platform.ask(queries, service)
    platform.check_reranked(answers, oracle, method)
    [embedded, *_] = platform.bus.read(EMBEDDED)
    assert {answer.event["model_id"] for answer in answers.values()} == {embedded.event["model_id"]}
    assert not platform.bus.read(f"{RESULTS}.dlq")


def test_a_deleted_clip_is_not_embedded_until_it_is_uploaded_again_and_old_uploads_change_nothing(
    library: Library, reranker: tuple[Service, Method], oracle: Oracle
) -> None:
    films, embedder, (service, method) = library.films, library.embedder, reranker
    ids = [f"{method.normalization}-{index}" for index in range(6)]
    platform = replace(library.platform, clips=dict(zip(ids, films, strict=False)))
    start = datetime.now(UTC)

    def check_now(query: str) -> None:
        asked = query_record(query, results_of(ids, range(6, 0, -1)))
        platform.check_reranked(platform.ask([asked], service), oracle, method)

    platform.upload(platform.clips, embedder, at=start)
    check_now("a red disc")

    platform.bus.publish(UPLOADED, [Record.of(gone, None, trace()) for gone in (ids[0], ids[4], "never seen")])
    platform.bus.await_group("streamer-embed", UPLOADED, seconds=30, alive=[embedder])
    del platform.clips[ids[0]], platform.clips[ids[4]]
    check_now("a red disc")

    again = {ids[0]: films[7]}
    platform.upload(again, embedder)
    platform.clips |= again
    check_now("a blue square")

    platform.upload({ids[0]: films[3], ids[1]: films[6]}, embedder, at=start - timedelta(days=1))
    check_now("a blue disc")

    newer = {ids[1]: films[6], ids[2]: films[5]}
    platform.upload(newer, embedder)
    platform.clips |= newer
    check_now("a white square")
    assert not platform.bus.read(f"{UPLOADED}.dlq")


def test_200_malformed_records_among_1000_good_ones_are_dead_lettered_and_nothing_else(
    kafka: Kafka, topic_prefix: str, tmp_path: Path, oracle: Oracle
) -> None:
    platform = Platform.start(kafka, topic_prefix, tmp_path)
    draw = random.Random(200)  # noqa: S311 - no secret
    films = tiny_footage(tmp_path / "clips")
    platform.clips = {f"clip-{index:04}": films[index % len(films)] for index in range(1000)}
    now = datetime.now(UTC)
    uploads = [upload_record(clip_id, video, now) for clip_id, video in platform.clips.items()]
    colours = ["red", "white", "blue", "yellow", "black", "purple", "green"]
    queries = [
        query_record(
            f"a {colours[index % 7]} disc",
            results_of([f"clip-{8 * draw.randrange(125) + look:04}" for look in draw.sample(range(8), 6)], range(6)),
        )
        for index in range(1000)
    ]
    bad_uploads = malformed(upload_faults(tmp_path / "clips"), 200, lambda _: trace())
    bad_queries = malformed(query_faults(), 200, lambda _: trace())

    with platform.run("embed") as embedder, platform.run("rerank") as reranker:
        services = [embedder.await_ready(), reranker.await_ready()]
        sent_uploads = platform.bus.publish(UPLOADED, draw.sample([*uploads, *bad_uploads], 1200))
        platform.bus.await_group("streamer-embed", UPLOADED, seconds=120, alive=services)
        sent_queries = platform.bus.publish(RESULTS, draw.sample([*queries, *bad_queries], 1200))
        platform.bus.await_group("streamer-rerank", RESULTS, seconds=60, alive=services)
        embedder.stop()
        reranker.stop()

    embedded = platform.bus.read(EMBEDDED)
    assert sorted(record.event["clip_id"] for record in embedded) == sorted(platform.clips)
    outputs = platform.bus.read(RERANKED)
    assert len(outputs) == 1000
    reranked = {record.event["query_id"]: record for record in outputs}
    good = {record.key.decode(): record for record in sent_queries if record.key and record.key[:9] != b"malformed"}
    assert reranked.keys() == good.keys()
    platform.check_reranked({good[query_id]: output for query_id, output in reranked.items()}, oracle, Method())
    check_dead_letters(platform.bus.read(f"{UPLOADED}.dlq"), sent_uploads, bad_uploads)
    check_dead_letters(platform.bus.read(f"{RESULTS}.dlq"), sent_queries, bad_queries)


def check_dead_letters(letters: list[Record], sent: list[Record], bad: Mapping[Record, Fault]) -> None:
    """Show that every malformed record has one dead letter, with the reason of its kind, and no other has."""
    kinds = {record.key: fault for record, fault in bad.items()}
    originals = {record.place: record for record in sent if record.key in kinds}
    places = [
        (letter.header("dlq.topic"), int(letter.header("dlq.partition")), int(letter.header("dlq.offset")))
        for letter in letters
    ]
    assert sorted(places) == sorted(originals)
    for letter, place in zip(letters, places, strict=True):
        check_dead_letter(letter, originals[place])
    check_reasons((kinds[letter.key], letter.header("dlq.reason")) for letter in letters)
