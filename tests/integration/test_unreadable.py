"""Batches that the service's consumer cannot decode, on a real broker: nothing stands still, nothing goes unnamed."""

from __future__ import annotations

import os
import struct
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer

from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.readers import recovery
from streamer.kafka.watch import unreadable
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from tests.support.loops import INPUT, OUTPUT, echo, read, running, value
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamer.health import Health
    from streamer.kafka import Record

SMALL_BUFFERS = {"receive.message.max.bytes": "4000000", "fetch.max.bytes": "2000000"}
"""Of the service's consumer, so that a test need not write 100 MB."""
MB = 1 << 20


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def kafka(logs: Path) -> Iterator[LocalKafka]:
    """Start a broker whose logs can be damaged."""
    with LocalKafka(data_dir=logs) as broker:
        yield broker


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load(
        {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "instance_id": "one",
            "kafka": SMALL_BUFFERS,
            "max_batch_bytes": 16 * MB,
        }
    )
    apply(made, load_specs())
    return made


def put(settings: Settings, *values: bytes, compression: str = "none") -> None:
    """Write the values as one batch to partition 0 of the input.

    They are sent by the flush, once all are there: a shorter linger would divide them where this machine is busy.
    """
    producer = Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "compression.type": compression,
            "message.max.bytes": 200 * MB,
            "batch.size": 200 * MB,
            "linger.ms": 60_000,
        }
    )
    refused = []
    for each in values:
        producer.produce(settings.topic(INPUT), each, each[:20], 0, lambda error, _: refused.append(error))
    producer.flush(60)
    assert refused == [None] * len(values)


def keys(settings: Settings) -> Counter[bytes | None]:
    return Counter(record.key for record in read(settings, OUTPUT))


def answered(settings: Settings, *expected: bytes, seconds: float = 60) -> None:
    """Wait until each of the records has come out, and see that none did twice."""
    found: Counter[bytes | None] = Counter()

    def complete() -> bool:
        found.clear()
        found.update(keys(settings))
        return len(found) == len(expected)

    wait_until(complete, seconds=seconds)
    assert found == Counter(expected)


def unreadable_letters(settings: Settings) -> list[tuple[str, str, Record]]:
    """Return the first and the last offset of each dead letter of what could not be read, and itself."""
    letters = read(settings, INPUT + ".dlq")
    told = [(dict(letter.headers), letter) for letter in letters]
    assert all(headers["dlq.reason"] == b"unreadable" and headers["dlq.partition"] == b"0" for headers, _ in told)
    return [
        ((headers["dlq.offset"] or b"").decode(), (headers["dlq.last_offset"] or b"").decode(), letter)
        for headers, letter in told
    ]


def is_ready(health: Health) -> bool:
    """Say whether nothing is waited for but the start, which a loop by itself does not have."""
    return all(each.startswith("start:") for each in health.readiness_problems())


def named(health: Health, condition: str) -> str:
    return next((each for each in health.readiness_problems() if each.startswith(condition + ":")), "")


def test_a_record_that_decompresses_to_more_than_the_consumers_buffers_is_read_with_larger_ones(
    settings: Settings,
) -> None:
    put(settings, b"first")
    put(settings, b"large" + bytes(12 * MB), compression="zstd")
    put(settings, b"last")
    seen: list[int] = []

    def work(record: Record) -> Sequence[object]:
        seen.append(len(record.value or b""))
        return echo(settings)(record)

    with running(settings, work) as (metrics, health, _, ended):  # type: ignore[arg-type]
        wait_until(lambda: "[0] stands at offset 1: " in named(health, "unreadable"))
        assert value(metrics, "streamer_unreadable_partitions") == 1
        answered(settings, b"first", (b"large" + bytes(15)), b"last")
        wait_until(lambda: is_ready(health))
        assert value(metrics, "streamer_unreadable_partitions") == 0
    assert ended == [True]
    assert sorted(seen) == [4, 5, 12 * MB + 5]
    assert read(settings, INPUT + ".dlq") == []


def test_each_record_of_a_batch_that_is_larger_than_the_consumers_buffers_is_processed_once(settings: Settings) -> None:
    put(settings, b"first")
    batch = [b"%02d" % number + b" " * MB for number in range(14)]
    put(settings, *batch, compression="zstd")
    put(settings, b"last")
    with running(settings, echo(settings)) as (_, _, _, ended):
        answered(settings, b"first", *(each[:20] for each in batch), b"last")
    assert ended == [True]


def test_what_no_buffer_holds_is_dead_lettered_by_its_offsets_and_its_partition_goes_on(settings: Settings) -> None:
    put(settings, b"first")
    put(settings, bytes(90 * MB), b"in the same batch", compression="zstd")
    put(settings, b"last")
    with running(settings, echo(settings)) as (metrics, health, _, ended):
        answered(settings, b"first", b"last")
        wait_until(lambda: is_ready(health))
        assert (
            value(
                metrics,
                "streamer_events_dead_lettered_total",
                topic=settings.topic(INPUT),
                reason="unreadable",
            )
            == 1
        )
    assert ended == [True]
    [(first, last, letter)] = unreadable_letters(settings)
    assert (first, last, letter.key, letter.value) == ("1", "2", None, None)
    with running(settings, echo(settings)) as (_, health, _, _):
        wait_until(lambda: is_ready(health))
        put(settings, b"after the restart")
        answered(settings, b"first", b"last", b"after the restart")
    assert len(unreadable_letters(settings)) == 1


def _batch(log: bytearray, number: int) -> int:
    """Return where in a log segment the batch of that number begins."""
    position = 0
    for _ in range(number):
        position += 12 + struct.unpack_from(">i", log, position + 8)[0]
    return position


def _unknown_codec(log: bytearray, batch: int) -> None:
    log[batch + 22] = 7


def _broken_payload(log: bytearray, batch: int) -> None:
    log[batch + 70 : batch + 80] = b"\xff" * 10


def _broken_record(log: bytearray, batch: int) -> None:
    log[batch + 61 : batch + 63] = b"\xff\x7f"


def _unknown_format(log: bytearray, batch: int) -> None:
    log[batch + 16] = 9


@pytest.mark.parametrize(
    ("compression", "damage"),
    [
        ("none", _unknown_codec),
        ("zstd", _broken_payload),
        ("gzip", _broken_payload),
        ("none", _broken_record),
        ("none", _unknown_format),
    ],
)
def test_a_batch_that_is_damaged_on_the_brokers_disk_costs_its_own_records_only(
    settings: Settings,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    damage: Callable[[bytearray, int], None],
) -> None:
    monkeypatch.setattr(recovery, "_ANSWER_S", 2.0)
    monkeypatch.setattr(recovery, "_SILENCE_S", 1.0)
    monkeypatch.setattr(unreadable, "_STILL_S", 4.0)
    put(settings, b"a" * 30, b"b" * 30)
    put(settings, *(b"damaged %d " % number * 9 for number in range(5)), compression=compression)
    put(settings, b"c" * 30, b"d" * 30)
    [segment] = logs.rglob(f"{settings.topic(INPUT)}-0/00000000000000000000.log")
    log = bytearray(segment.read_bytes())
    damage(log, _batch(log, 1))
    with segment.open("r+b") as file:
        file.write(log)
    with running(settings, echo(settings)) as (_, health, _, ended):
        wait_until(lambda: "[0] stands at offset 2: " in named(health, "unreadable"))
        answered(settings, *(each * 20 for each in (b"a", b"b", b"c", b"d")), seconds=120)
        wait_until(lambda: is_ready(health))
    assert ended == [True]
    assert [(first, last) for first, last, _ in unreadable_letters(settings)] == [("2", "6")]


def test_a_batch_that_is_longer_than_any_answer_the_consumer_takes_is_read_with_larger_limits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unreadable, "_STILL_S", 4.0)
    put(settings, b"first")
    put(settings, b"incompressible" + os.urandom(1_900_000))
    put(settings, b"last")
    narrow = settings.model_copy(
        update={"kafka": {"receive.message.max.bytes": "1500000", "fetch.max.bytes": "1000000"}}
    )
    with running(narrow, echo(settings)) as (_, _, _, ended):
        wait_until(lambda: sum(keys(settings).values()) == 3, seconds=90)
    assert ended == [True]
    assert read(settings, INPUT + ".dlq") == []


def test_a_partition_without_a_valid_offset_is_named_where_none_may_be_chosen(settings: Settings) -> None:
    put(settings, b"first")
    strict = settings.model_copy(update={"kafka": {"auto.offset.reset": "error"}})
    with running(strict, echo(settings)) as (metrics, health, _, _):
        wait_until(lambda: f"{settings.topic(INPUT)}{list(range(12))}" in named(health, "position"))
        assert "auto.offset.reset is error" in named(health, "position")
        assert value(metrics, "streamer_unreadable_partitions") == 12
    assert keys(settings) == Counter()
