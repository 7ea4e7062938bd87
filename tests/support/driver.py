"""What a platform beside the service does: publishes, reads what is committed, runs the service's commands.

It knows the contract only: the commands, the STREAMER_* variables, the topics, the headers and the schemas.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from jsonschema import Draft202012Validator

from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from tests.support.waiting import Alive

UPLOADED, EMBEDDED = "clips.uploaded", "clips.embedded"
RESULTS, RERANKED = "query.results", "query.reranked"

STREAMER = Path(sys.executable).parent / "streamer"
SCHEMAS = Path(__file__).parents[2] / "topics"

_REQUEST_S = 5.0

CARRIED = ("traceparent", "tracestate", "baggage", "ce_tenant")
"""Those headers that go from a record to all that it causes."""
OWN = ("ce_id", "ce_source", "ce_type", "ce_time")
"""Those that identify an event, and so differ between a record and what it causes."""


def model_dir() -> Path:
    """Return the folder of the model that is used by default, without importing the product."""
    spec = importlib.util.find_spec("streamer")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "demo" / "model"


@cache
def validator(topic: str) -> Draft202012Validator:
    """Return the published schema of a topic's events."""
    schema = json.loads((SCHEMAS / f"{topic}.schema.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def limit(topic: str, field: str, keyword: str) -> int:
    """Return what a topic's schema says of a field, wherever in the schema the field is described."""

    def search(node: object) -> int | None:
        if isinstance(node, list):
            return next(filter(None, map(search, node)), None)
        if not isinstance(node, dict):
            return None
        described = node.get("properties", {}).get(field, {})
        own = described.get(keyword) if isinstance(described, dict) else None
        return own or search(list(node.values()))

    found = search(validator(topic).schema)
    assert found is not None, f"the schema of {topic} sets no {keyword} for {field}"
    return found


@dataclass(frozen=True, slots=True)
class Record:
    """A record to publish, or one that was read; the place is known once the broker has it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str = ""
    partition: int = -1
    offset: int = -1

    @classmethod
    def of(cls, key: str, event: object, headers: Iterable[tuple[str, bytes]] = ()) -> Self:
        """Make the record of a JSON event; no event is a null value."""
        value = None if event is None else json.dumps(event, ensure_ascii=False).encode()
        return cls(key.encode(), value, tuple(headers))

    @classmethod
    def read(cls, message: Message) -> Self:
        """Make the record of a message that a consumer returned."""
        headers = tuple(cast("list[tuple[str, bytes]]", message.headers() or []))
        return cls(message.key(), message.value(), headers, *place_of(message))

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset."""
        return self.topic, self.partition, self.offset

    @property
    def event(self) -> Any:
        """The JSON object of the value."""
        assert self.value is not None
        return json.loads(self.value)

    def header(self, name: str) -> str:
        """Return the text of a header that must be there once."""
        [value] = [value for key, value in self.headers if key == name]
        return value.decode()

    def carried(self) -> Counter[tuple[str, bytes]]:
        """Return the headers that what this record causes must have too."""
        return Counter((name, value) for name, value in self.headers if name in CARRIED)


LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # so in confluent_kafka


def place_of(message: Message) -> tuple[str, int, int]:
    """Return topic, partition and offset of a message that a broker has."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset


class Bus:
    """A platform's view of its brokers, within one topic prefix."""

    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.prefix = prefix
        self._connection: dict[str, Any] = {"bootstrap.servers": bootstrap_servers}
        # librdkafka 2.16 does not ask for the leaders again where a broker refuses a request by the leader's epoch.
        self._admin = AdminClient(self._connection | {"metadata.max.age.ms": 2_000})
        self._producer = Producer(self._connection | {"acks": "all", "linger.ms": 5})

    def publish(self, topic: str, records: Iterable[Record]) -> list[Record]:
        """Publish and return the same records with their places, in the order given."""
        reports: dict[int, Message] = {}

        def delivered(index: int, error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            reports[index] = message

        given = list(records)
        for index, record in enumerate(given):
            self._producer.produce(
                self.prefix + topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                on_delivery=partial(delivered, index),
            )
            self._producer.poll(0)
        assert self._producer.flush(30) == 0
        return [
            Record(record.key, record.value, record.headers, *place_of(reports[index]))
            for index, record in enumerate(given)
        ]

    def ends(self, topic: str) -> dict[tuple[str, int], int]:
        """Return the high watermark of each partition that is not empty, open transactions included."""
        name = self.prefix + topic
        partitions = self._admin.list_topics(name, timeout=30).topics[name].partitions
        asked = {TopicPartition(name, partition): LATEST for partition in partitions}
        level = IsolationLevel.READ_UNCOMMITTED
        futures = self._admin.list_offsets(asked, isolation_level=level, request_timeout=10)
        ends = {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
        return {place: end for place, end in ends.items() if end}

    def asker(self, group: str) -> Consumer:
        """Return a consumer that never joins, to ask for a group's offsets.

        The AdminClient of librdkafka 2.16 crashes the process where the group's coordinator moves under its request.
        """
        return Consumer(self._connection | {"group.id": self.prefix + group, "enable.auto.commit": False})

    def await_group(self, group: str, topic: str, *, seconds: float, alive: Sequence[Alive]) -> None:
        """Wait until a consumer group has committed everything that a topic holds."""
        ends = self.ends(topic)
        consumer = self.asker(group)
        try:
            wait_until(lambda: not left(consumer, ends), f"{group} to finish {topic}", seconds=seconds, alive=alive)
        finally:
            consumer.close()

    def read(self, topic: str, *, seconds: float = 30) -> list[Record]:
        """Read all that is committed in a topic now, from its beginning.

        A transaction whose commit is decided reaches its partitions a moment later: the read ends at the
        high watermark, so one that stays open is an error and no missing record.
        """
        ends = self.ends(topic)
        consumer = Consumer(
            self._connection
            | {
                "group.id": f"{self.prefix}outside-driver",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        records = []
        deadline = time.monotonic() + seconds
        try:
            consumer.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in ends])
            while ends:
                assert time.monotonic() < deadline, f"{topic} is not committed up to {ends}"
                message = consumer.poll(0.2)
                if message is None:
                    continue
                error = message.error()
                if error is None:
                    records.append(Record.read(message))
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                else:
                    drop_reached(ends, message)
        finally:
            consumer.close()
        return records


def drop_reached(ends: dict[tuple[str, int], int], reached: Message) -> None:
    """Remove the partition whose end a consumer reports to have reached, where it is the end that is wanted."""
    topic, partition, offset = place_of(reached)
    if offset >= ends.get((topic, partition), 0):
        ends.pop((topic, partition), None)


def left(asker: Consumer, ends: Mapping[tuple[str, int], int]) -> str:
    """Describe what a group has not committed of partitions up to their ends; empty where it has all."""
    try:
        found = asker.committed([TopicPartition(*place) for place in ends], timeout=_REQUEST_S)
    except KafkaException as error:  # the group is not made yet, say
        return str(error)
    return ", ".join(
        f"{each.topic}[{each.partition}] {each.error or each.offset} of {ends[each.topic, each.partition]}"
        for each in found
        if each.error is not None or each.offset != ends[each.topic, each.partition]
    )


class Service:
    """One of the service's own commands, running as a process, configured by its environment alone."""

    def __init__(
        self, command: str, environment: dict[str, str], folder: Path, *arguments: str, before: Sequence[str] = ()
    ) -> None:
        """Start it; ``before``: a command line that becomes this one, for limits or another user."""
        self.command = command
        self.port = free_port()
        variables = {"STREAMER_INSTANCE_ID": f"{command}-0"} | environment
        variables["STREAMER_METRICS_PORT"] = str(self.port)
        self._log = folder / f"{command}-{self.port}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, STREAMER, command, *arguments],
                env=variables,
                cwd=folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def await_ready(self, *, seconds: float = 60) -> Self:
        """Wait until the service says that it can work."""
        wait_until(self._ready, f"{self.command} to be ready", seconds=seconds, alive=[self])
        return self

    def check_alive(self) -> None:
        """Show that the process still runs, and else what it said last."""
        code = self.process.poll()
        assert code is None, f"{self.command} exited with {code}\n{self.tail()}"

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log().splitlines()[-40:])

    def log(self) -> str:
        """Return all that it has written so far."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """Show that SIGTERM ends the process that was started, cleanly and within ten seconds."""
        self.check_alive()
        self.process.terminate()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.command} still runs 10 s after SIGTERM\n{self.tail()}") from error
        assert code == 0, f"{self.command} exited with {code} on SIGTERM\n{self.tail()}"

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()


def environment(bus: Bus, store: Path, allowed: Iterable[Path], **settings: str) -> dict[str, str]:
    """Return a process environment that holds these settings and no others of the service."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    return inherited | {
        "STREAMER_BOOTSTRAP_SERVERS": bus.bootstrap_servers,
        "STREAMER_TOPIC_PREFIX": bus.prefix,
        "STREAMER_MODEL": "demo",
        "STREAMER_STORE": f"lmdb:{store}",
        "STREAMER_ALLOWED_URIS": json.dumps([f"file:{folder}" for folder in allowed]),
        **settings,
    }


def apply_topics(variables: dict[str, str], folder: Path) -> None:
    """Create the topics as an operator does."""
    done = subprocess.run(
        [STREAMER, "topics", "apply"],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check_caused(output: Record, cause: Record, topic: str) -> None:
    """Show that an output is keyed as what caused it, is valid on its topic and carries the trace on."""
    validator(topic).validate(output.event)
    assert output.key == cause.key
    assert cause.carried() <= Counter(output.headers)
    assert output.header("content-type") == "application/json"
    if any(name == "ce_id" for name, _ in cause.headers):
        assert output.header("ce_type") == f"io.cliprerank.{topic}.v1"
        given = dict(cause.headers)
        assert all(output.header(name).encode() != given.get(name) for name in OWN)


def check_dead_letter(letter: Record, original: Record) -> None:
    """Show that a dead letter holds its original untouched, and says why and when it died."""
    assert (letter.key, letter.value) == (original.key, original.value)
    assert Counter(original.headers) <= Counter(letter.headers)
    assert letter.header("dlq.reason")
    assert letter.header("dlq.error")
    assert int(letter.header("dlq.attempts")) >= 1
    assert datetime.fromisoformat(letter.header("dlq.at")).utcoffset() is not None
