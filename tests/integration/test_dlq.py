"""Dead letters on a real broker: looked at, and put back exactly once whatever ends the attempt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.cli import cli
from streamer.events import Reason, now
from streamer.kafka import Output, Record, dead_letter
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.dead_letters import REDRIVEN_FROM, truncated
from streamer.kafka.dlq.letters import MARKER_HEADER, DeadLetterError, Filter, State, encode_marker
from streamer.kafka.dlq.redrive import Report, redrive
from streamer.kafka.readers.publish import Reader, publish
from streamer.kafka.records import redriven_for
from streamer.settings import Settings, SettingsError, load
from streamer.topology import RERANK
from tests.support.loops import read

if TYPE_CHECKING:
    from click.testing import Result

    from streamer.local_kafka.broker import LocalKafka

TOPIC = "query.results"
DLQ = "query.results.dlq"


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    made = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix})
    apply(made, [spec for spec in load_specs() if spec.name in (TOPIC, DLQ)])
    return made


def failed(
    settings: Settings,
    name: str,
    reason: Reason = Reason.NOT_JSON,
    *,
    value: bytes | None = b"{}",
    partition: int = 0,
    topic: str = TOPIC,
    group: str = "",
) -> Output:
    headers = (("traceparent", b"00-1"), ("ce_id", name.encode()))
    record = Record(settings.topic(topic), partition, 7, name.encode(), value, headers, now(), group=group)
    return dead_letter(record, reason, f"{name} went wrong", attempts=3)


def fail(settings: Settings, count: int, reason: Reason = Reason.NOT_JSON, *, start: int = 0) -> None:
    publish(settings, [failed(settings, f"q{start + i}", reason) for i in range(count)])


def copies(settings: Settings) -> Counter[str]:
    return Counter((record.key or b"").decode() for record in read(settings, TOPIC))


def streamer(settings: Settings, *arguments: str) -> Result:
    given = ["--bootstrap-servers", settings.bootstrap_servers, "--topic-prefix", settings.topic_prefix]
    return CliRunner().invoke(cli, ["dlq", *arguments, *given], catch_exceptions=False)


def answer(settings: Settings, *arguments: str) -> list[dict[str, object]]:
    result = streamer(settings, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def transactional(settings: Settings, name: str) -> Producer:
    producer = Producer(
        {"bootstrap.servers": settings.bootstrap_servers, "transactional.id": settings.topic(name), "linger.ms": 0}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    return producer


def send(producer: Producer, output: Output) -> None:
    producer.produce(output.topic, output.value, output.key, partition=0, headers=list(output.headers))
    while len(producer):
        producer.poll(0.05)


def test_a_copy_is_the_original_in_its_own_partition_and_says_where_it_came_from(settings: Settings) -> None:
    publish(settings, [failed(settings, f"q{i}", value=None if i == 0 else b"{ }", partition=i) for i in range(12)])
    assert redrive(settings, TOPIC, Filter()).redriven == {"not_json": 12}
    back = sorted(read(settings, TOPIC), key=lambda record: record.partition)
    assert [record.partition for record in back] == list(range(12))
    for i, record in enumerate(back):
        assert record.key == f"q{i}".encode()
        assert record.value == (None if i == 0 else b"{ }")
        origin = f"{settings.topic(DLQ)}/0/{i}".encode()
        assert record.headers == (("traceparent", b"00-1"), ("ce_id", f"q{i}".encode()), (REDRIVEN_FROM, origin))


def test_what_nobody_would_process_is_not_redriven_until_a_group_that_reads_is_named(settings: Settings) -> None:
    gone, there = (settings.topic(name) for name in ("gone", "there"))
    publish(settings, [failed(settings, "q0"), *(failed(settings, name, group=gone) for name in ("q1", "q2"))])
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": there})
    consumer.commit(offsets=[TopicPartition(settings.topic(TOPIC), 0, 0)], asynchronous=False)
    consumer.close()
    told = f"the consumer group {gone} has no members and no committed offsets"
    for dry_run in (True, False):
        with pytest.raises(SettingsError, match=told):
            redrive(settings, TOPIC, Filter(), dry_run=dry_run)
    with pytest.raises(SettingsError, match="group nowhere has no members"):
        redrive(settings, TOPIC, Filter(), to_group="nowhere")
    assert copies(settings) == Counter()
    result = streamer(settings, "redrive", TOPIC, "--to-group", there)
    assert (result.exit_code, copies(settings)) == (0, Counter(q0=1, q1=1, q2=1)), result.output
    assert {redriven_for(record) for record in read(settings, TOPIC)} == {there}
    assert redrive(settings, TOPIC, Filter()) == Report(left=Counter({State.REDRIVEN: 3}))


def test_uploads_are_redriven_for_every_group_so_that_none_can_be_named(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="--to-group: every consumer group processes"):
        redrive(settings, "clips.uploaded", Filter(), to_group="any")


def test_a_group_suffix_selects_the_dead_letters_of_its_group(settings: Settings) -> None:
    groups = {suffix: settings.group(RERANK.group) + suffix for suffix in ("-blue", "-green")}
    publish(settings, [failed(settings, f"q{suffix}", group=group) for suffix, group in groups.items()])
    for suffix, group in groups.items():
        (listed,) = answer(settings, "list", TOPIC, "--records", "--group-suffix", suffix)
        assert (listed["key"], listed["group"]) == (f"q{suffix}", group)
        (shown,) = answer(settings, "show", TOPIC, "--group-suffix", suffix)
        assert shown["key"] == f"q{suffix}"
    (other,) = answer(settings, "list", TOPIC, "--records", "--group-suffix", "-blue", "--group", groups["-green"])
    assert other["key"] == "q-green"


def test_two_redrives_with_overlapping_filters_copy_each_dead_letter_once(settings: Settings) -> None:
    reasons = [Reason.NOT_JSON, Reason.EMPTY, Reason.INTERNAL] * 4
    publish(settings, [failed(settings, f"q{i}", reason) for i, reason in enumerate(reasons)])
    first = redrive(settings, TOPIC, Filter(["empty", "internal"]), limit=5)
    assert first.redriven.total() == 5
    second = redrive(settings, TOPIC, Filter(["internal", "not_json"]), batch_records=2)
    assert second.redriven.total() == 6
    assert second.left == {State.REDRIVEN: 2}
    third = redrive(settings, TOPIC, Filter())
    assert (third.redriven, third.left) == ({"empty": 1}, {State.REDRIVEN: 11})
    assert redrive(settings, TOPIC, Filter()) == Report(left=Counter({State.REDRIVEN: 12}))
    assert copies(settings) == {f"q{i}": 1 for i in range(12)}


def test_time_filters_redrive_what_failed_between(settings: Settings) -> None:
    fail(settings, 2)
    begin = now()
    fail(settings, 3, start=2)
    end = now()
    fail(settings, 2, start=5)
    assert redrive(settings, TOPIC, Filter(since=begin, until=end)).redriven.total() == 3
    assert set(copies(settings)) == {"q2", "q3", "q4"}


_REDRIVE = """
import sys
from streamer.kafka.dlq.letters import Filter
from streamer.kafka.dlq.redrive import redrive
from streamer.settings import load
settings = load({"bootstrap_servers": sys.argv[1], "topic_prefix": sys.argv[2]})
redrive(settings, "query.results", Filter(), batch_records=1)
"""


def test_a_redrive_that_is_killed_and_run_again_copies_each_dead_letter_once(settings: Settings) -> None:
    count = 500
    fail(settings, count)
    put_back = []
    ahead = TopicPartition(settings.topic(TOPIC), 0)
    with closing(Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": "none"})) as looking:
        # Each transaction of one copy and the end of it take two offsets.
        for end in (1, 80, 250, 500):
            with subprocess.Popen(
                [sys.executable, "-c", _REDRIVE, settings.bootstrap_servers, settings.topic_prefix]
            ) as process:
                while looking.get_watermark_offsets(ahead, timeout=20)[1] < end:
                    assert process.poll() is None
                    time.sleep(0.002)
                process.kill()
            assert process.returncode == -signal.SIGKILL
            report = redrive(settings, TOPIC, Filter(), dry_run=True)
            put_back.append(report.left[State.REDRIVEN])
    assert put_back == sorted(put_back)
    assert 0 < put_back[-1] < count
    last = redrive(settings, TOPIC, Filter())
    assert last.redriven.total() > 0
    assert copies(settings) == {f"q{i}": 1 for i in range(count)}


def test_a_later_redrive_fences_an_earlier_one_and_each_dead_letter_is_copied_once(settings: Settings) -> None:
    count = 400
    fail(settings, count)
    ended: list[object] = []

    def earlier() -> None:
        try:
            ended.append(redrive(settings, TOPIC, Filter(), batch_records=1))
        except DeadLetterError as error:
            ended.append(str(error))

    thread = threading.Thread(target=earlier)
    thread.start()
    with closing(Reader(settings, [settings.topic(TOPIC)])) as reader:
        next(reader.records(patience=30))
    report = redrive(settings, TOPIC, Filter(), batch_records=7)
    thread.join(60)
    (told,) = ended
    assert isinstance(told, str)
    assert "another redrive of the same topic has taken over" in told or "continues where this one stopped" in told
    assert report.left[State.REDRIVEN] > 0
    assert report.redriven.total() + report.left[State.REDRIVEN] == count
    assert copies(settings) == {f"q{i}": 1 for i in range(count)}


def test_a_marker_after_an_open_transaction_is_waited_for(settings: Settings) -> None:
    fail(settings, 1)
    service = transactional(settings, "service")
    send(service, failed(settings, "undecided"))
    redriver = transactional(settings, "redriver")
    marker = Output(settings.topic(DLQ), None, encode_marker([0], now()), ((MARKER_HEADER, b"redriven"),))
    send(redriver, marker)
    redriver.commit_transaction(20)
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(redrive(settings, TOPIC, Filter())))
    thread.start()
    thread.join(2)
    assert thread.is_alive()
    service.abort_transaction(20)
    thread.join(30)
    assert reports == [Report(left=Counter({State.REDRIVEN: 1}))]
    assert read(settings, TOPIC) == []


def test_an_aborted_marker_and_an_aborted_dead_letter_count_for_nothing(settings: Settings) -> None:
    fail(settings, 1)
    redriver = transactional(settings, "redriver")
    send(redriver, Output(settings.topic(DLQ), None, encode_marker([0], now()), ((MARKER_HEADER, b"redriven"),)))
    send(redriver, failed(settings, "never"))
    redriver.abort_transaction(20)
    assert redrive(settings, TOPIC, Filter()).redriven.total() == 1
    assert copies(settings) == {"q0": 1}


def test_dry_run_reports_and_changes_nothing(settings: Settings) -> None:
    fail(settings, 3)
    told = answer(settings, "redrive", TOPIC, "--dry-run", "--limit", "2")
    assert told == [
        {
            "topic": settings.topic(TOPIC),
            "dry_run": True,
            "redriven": 2,
            "redriven_by_reason": {"not_json": 2},
            "already_redriven": 0,
            "truncated": 0,
            "foreign": 0,
            "too_large": 0,
        }
    ]
    assert read(settings, TOPIC) == []
    assert len(read(settings, DLQ)) == 3


def test_truncated_and_foreign_ones_stay_and_are_counted(settings: Settings) -> None:
    elsewhere = failed(settings, "elsewhere", topic="clips.uploaded")
    publish(
        settings,
        [
            failed(settings, "whole"),
            truncated(failed(settings, "cut", value=b"x" * 200_000)),
            Output(settings.topic(DLQ), elsewhere.key, elsewhere.value, elsewhere.headers),
            Output(settings.topic(DLQ), b"stranger", b"hello", ()),
        ],
    )
    for expected in (1, 0):
        report = redrive(settings, TOPIC, Filter())
        assert report.redriven.total() == expected
        assert (report.left[State.TRUNCATED], report.left[State.FOREIGN]) == (1, 2)
    assert copies(settings) == {"whole": 1}
    text = streamer(settings, "redrive", TOPIC).output
    assert f"0 redriven to {settings.topic(TOPIC)}\n" in text
    assert "1 redriven before\n1 not redriven: truncated" in text


def test_a_dead_letter_too_large_for_its_topic_does_not_block_the_redrive_of_others(settings: Settings) -> None:
    large = failed(settings, "large", Reason.TOO_LARGE, value=b"x" * 4_000_000)
    roomy = load({**settings.model_dump(exclude_unset=True), "kafka": {"message.max.bytes": "8000000"}})
    publish(roomy, [failed(settings, "a"), large, failed(settings, "b")])
    report = redrive(settings, TOPIC, Filter())
    assert (report.redriven, report.refused) == ({"not_json": 2}, {"too_large": 1})
    assert copies(settings) == {"a": 1, "b": 1}
    (again,) = answer(settings, "redrive", TOPIC)
    assert (again["redriven"], again["already_redriven"], again["too_large"]) == (0, 2, 1)


def test_a_redriven_record_that_fails_again_is_a_new_dead_letter(settings: Settings) -> None:
    fail(settings, 1)
    redrive(settings, TOPIC, Filter())
    (back,) = read(settings, TOPIC)
    publish(settings, [dead_letter(back, Reason.EMPTY, "still wrong")])
    (newest,) = answer(settings, "list", TOPIC, "--records", "--reason", "empty")
    assert (newest["state"], newest["attempts"]) == ("pending", 1)
    assert redrive(settings, TOPIC, Filter()).redriven == {"empty": 1}
    assert copies(settings) == {"q0": 2}


def test_what_retention_took_is_gone_and_no_error(settings: Settings) -> None:
    fail(settings, 3)
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(settings.topic(DLQ), 0, 2)]).values():
        future.result(20)
    (listed,) = answer(settings, "list", TOPIC)
    assert listed["count"] == 1
    assert redrive(settings, TOPIC, Filter()).redriven.total() == 1
    assert copies(settings) == {"q2": 1}


def test_list_counts_by_reason_and_shows_records(settings: Settings) -> None:
    fail(settings, 3)
    fail(settings, 1, Reason.EMPTY, start=3)
    redrive(settings, TOPIC, Filter(), limit=1)
    (listed,) = answer(settings, "list", TOPIC)
    rows = listed["reasons"]
    assert isinstance(rows, list)
    assert listed["topic"] == settings.topic(DLQ)
    assert [(row["reason"], row["count"], row["pending"], row["redriven"]) for row in rows] == [
        ("not_json", 3, 2, 1),
        ("empty", 1, 1, 0),
    ]
    records = answer(settings, "list", TOPIC, "--records", "--limit", "2")
    assert [(each["offset"], each["key"], each["state"]) for each in records] == [
        (0, "q0", "redriven"),
        (1, "q1", "pending"),
    ]
    assert records[0]["error"] == "q0 went wrong"
    assert records[0]["attempts"] == 3
    assert answer(settings, "list", TOPIC, "--records", "--until", "1h") == []
    summary = [line.replace("│", " ").split() for line in streamer(settings, "list", TOPIC).stdout.splitlines()]
    assert ["not_json", "3", "2", "1"] in [cells[:4] for cells in summary]
    assert ["empty", "1", "1", "0"] in [cells[:4] for cells in summary]
    table = streamer(settings, "list", TOPIC, "--records").stdout
    rows_shown = [line.replace("│", " ").split() for line in table.splitlines()]
    assert ["0", "0", "q0", "not_json", "q0"] in [cells[:5] for cells in rows_shown]
    assert "redriven" in table


def test_show_finds_one_by_place_and_by_key_and_escapes_what_a_terminal_obeys(settings: Settings) -> None:
    publish(
        settings, [failed(settings, "q0", value=b'{"query": "\xe8\xb5\xa4"}'), failed(settings, "q1", value=b"\x1b[2J")]
    )
    text = streamer(settings, "show", TOPIC, "0", "0").output
    assert '"query": "赤"' in text
    assert "dlq.reason: not_json" in text
    (shown,) = answer(settings, "show", TOPIC, "--key", "q1")
    assert (shown["offset"], shown["value_text"]) == (1, "\x1b[2J")
    assert ["ce_id", "q1"] in shown["headers"]  # type: ignore[operator]
    assert "\x1b" not in streamer(settings, "show", TOPIC, "0", "1").output
    missing = streamer(settings, "show", TOPIC, "0", "9")
    assert (missing.exit_code, missing.output) == (1, f"Error: no such dead letter in {settings.topic(DLQ)}\n")


def test_missing_topics_and_unreachable_brokers_are_one_line(kafka: LocalKafka, topic_prefix: str) -> None:
    for servers, told in (
        (kafka.bootstrap_servers, f"{topic_prefix}{DLQ} does not exist; streamer topics apply creates it"),
        ("127.0.0.1:1", "Kafka at 127.0.0.1:1: "),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "streamer", "dlq", "list", TOPIC, "--bootstrap-servers", servers],
            env={**os.environ, "STREAMER_TOPIC_PREFIX": topic_prefix},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("streamer: ")]
        assert told in line
        assert "Traceback" not in done.stderr
