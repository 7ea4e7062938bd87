"""What a crash right after each step of a transaction leaves behind, and that a restart makes it whole.

The processes are killed, or frozen and woken as zombies, at exactly the named point; what they leave is read from the
broker before anything else runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.faults import VARIABLE, FaultPoint
from streamer.kafka import Output
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.readers.publish import publish
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from streamer.store import open_existing
from tests.support import loop_process
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Record, Service, apply_topics, environment
from tests.support.footage import tiny_footage
from tests.support.loop_process import GROUP, INPUT, OUTPUT
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(loop_process.__file__)
CLASSIC = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "500"}
TRANSACTION_TIMEOUT_MS = 8_000
PARTITION = 0


@pytest.fixture(scope="module")
def impatient_kafka() -> Iterator[LocalKafka]:
    """A broker that soon gives up members and transactions that show no life."""
    properties = {
        "group.min.session.timeout.ms": "1000",
        "group.consumer.min.session.timeout.ms": "1000",
        "group.consumer.session.timeout.ms": "3000",
        "group.consumer.min.heartbeat.interval.ms": "500",
        "group.consumer.heartbeat.interval.ms": "500",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    }
    with LocalKafka(properties=properties) as broker:
        yield broker


@dataclass
class World:
    """The broker as one test sees it."""

    settings: Settings
    log_folder: Path

    def feed(self, *numbers: int) -> None:
        """Publish records, all to one partition, so that one process owns them all."""
        topic = self.settings.topic(INPUT)
        publish(self.settings, (Output(topic, b"all", f"q{number}".encode(), ()) for number in numbers))

    def read(self, *, committed: bool) -> Counter[bytes]:
        """Count the values in the output topic, up to its end or up to the first open transaction."""
        level = "read_committed" if committed else "read_uncommitted"
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "group.id": "looks",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": level,
            }
        )
        name = self.settings.topic(OUTPUT)
        waiting = set(consumer.list_topics(name, timeout=10).topics[name].partitions)
        consumer.assign([TopicPartition(name, partition, 0) for partition in waiting])
        values: Counter[bytes] = Counter()
        deadline = time.monotonic() + 120
        while waiting:
            assert time.monotonic() < deadline
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            if error is None:
                values[message.value() or b""] += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                waiting.discard(message.partition() or 0)
            else:
                raise KafkaException(error)
        consumer.close()
        return values

    def committed_offset(self) -> int | None:
        """Return how far the group has come, open transactions left out."""
        admin = AdminClient({"bootstrap.servers": self.settings.bootstrap_servers})
        asked = [ConsumerGroupTopicPartitions(self.settings.topic(GROUP))]
        [future] = admin.list_consumer_group_offsets(asked, require_stable=False).values()
        offsets = [each.offset for each in future.result(10).topic_partitions or () if each.offset > 0]
        assert len(offsets) <= 1
        return offsets[0] if offsets else None

    @contextlib.contextmanager
    def process(self, *, fault: str = "", instance: str = "one") -> Iterator[subprocess.Popen[bytes]]:
        """Run the loop as a process; it is killed at the end of the block if it still runs."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
        variables |= {
            "STREAMER_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "STREAMER_TOPIC_PREFIX": self.settings.topic_prefix,
            "STREAMER_INSTANCE_ID": instance,
            VARIABLE: fault,
        }
        for name, value in self.settings.kafka.items():
            variables[f"STREAMER_KAFKA__{name.upper().replace('.', '_')}"] = value
        with (self.log_folder / "loop.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, SCRIPT], env=variables, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return (self.log_folder / "loop.log").read_text()


@pytest.fixture
def world(request: pytest.FixtureRequest, impatient_kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> World:
    """Topics of the test's own, and processes under the group protocol that the test asks for."""
    kafka = CLASSIC if getattr(request, "param", "consumer") == "classic" else {"group.protocol": "consumer"}
    settings = load(
        {
            "bootstrap_servers": impatient_kafka.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "kafka": kafka | {"transaction.timeout.ms": str(TRANSACTION_TIMEOUT_MS)},
        }
    )
    apply(settings, load_specs())
    return World(settings, tmp_path)


def each_once(*numbers: int) -> Counter[bytes]:
    return Counter(f"q{number}".encode() for number in numbers)


FIRST, REST = 0, tuple(range(1, 9))
ALL = (FIRST, *REST)

NOTHING, ON_THEIR_WAY, ONE_OPEN, DONE = "nothing", "outputs on their way", "an open transaction", "everything"
LEFT_BEHIND = {
    FaultPoint.BEGUN: NOTHING,
    FaultPoint.OFFSETS_SENT: ON_THEIR_WAY,
    FaultPoint.PRODUCED: ONE_OPEN,
    FaultPoint.COMMITTED: DONE,
}


@pytest.mark.parametrize(
    ("world", "point"),
    [*(("consumer", point) for point in LEFT_BEHIND), ("classic", FaultPoint.OFFSETS_SENT)],
    indirect=["world"],
)
def test_a_crash_after_a_step_leaves_what_is_written_there_and_a_restart_makes_it_whole(
    world: World, point: FaultPoint
) -> None:
    with world.process(fault=f"{point}:2") as process:
        world.feed(FIRST)
        wait_until(lambda: world.read(committed=True) == each_once(FIRST), "the first transaction")
        assert process.poll() is None
        world.feed(*REST)
        assert process.wait(20) == -signal.SIGKILL, world.log()
    seen, committed, offset = world.read(committed=False), world.read(committed=True), world.committed_offset()
    if LEFT_BEHIND[point] is NOTHING:
        assert (seen, committed, offset) == (each_once(FIRST), each_once(FIRST), 1)
    elif LEFT_BEHIND[point] is not DONE:
        # Offsets are sent while outputs are on their way: those may have arrived or not.
        assert seen > committed or (seen == committed and LEFT_BEHIND[point] is ON_THEIR_WAY)
        assert (committed, offset) == (each_once(FIRST), 1)
    else:
        assert seen == committed > each_once(FIRST)
        assert offset == committed.total()
    assigned = world.log().count("partitions assigned")
    with world.process() as process:
        wait_until(lambda: world.read(committed=True) == each_once(*ALL), f"the rest, after {world.log()}")
        wait_until(lambda: world.committed_offset() == len(ALL), "the offsets")
        # Where nothing is left to do, the process may not have come as far as its signal handlers.
        wait_until(lambda: world.log().count("partitions assigned") > assigned, "the second process")
        process.terminate()
        assert process.wait(15) == 0, world.log()
    assert world.read(committed=True) == each_once(*ALL)


def test_a_crash_after_init_leaves_nothing_and_has_ended_what_the_predecessor_left_open(world: World) -> None:
    world.feed(*ALL)
    with world.process(fault=FaultPoint.PRODUCED) as process:
        assert process.wait(20) == -signal.SIGKILL, world.log()
    assert world.read(committed=False)
    with world.process(fault=FaultPoint.INITIALISED) as process:
        assert process.wait(20) == -signal.SIGKILL, world.log()
    assert (world.read(committed=True), world.committed_offset()) == (Counter(), None)
    with world.process() as process:
        wait_until(lambda: world.read(committed=True) == each_once(*ALL), "all")
        process.terminate()
        assert process.wait(15) == 0, world.log()
    assert world.read(committed=True) == each_once(*ALL)


@pytest.mark.parametrize("world", ["consumer", "classic"], indirect=True)
@pytest.mark.parametrize("point", [FaultPoint.BEGUN, FaultPoint.PRODUCED, FaultPoint.OFFSETS_SENT])
def test_a_zombie_that_wakes_in_the_middle_of_its_transaction_is_refused(world: World, point: FaultPoint) -> None:
    world.feed(*ALL)
    with world.process(fault=f"{point}:1:STOP") as zombie:
        wait_until(lambda: "State:\tT" in Path(f"/proc/{zombie.pid}/status").read_text(), "the freeze")
        with world.process(instance="two"):
            # Where offsets are part of the open transaction, the new owner waits until that is decided.
            wait_until(lambda: world.read(committed=True) == each_once(*ALL), "the new owner")
            zombie.send_signal(signal.SIGCONT)
            # One of the two goes on; the zombie may find that it was fenced, and ends then.
            wait_until(lambda: zombie.poll() == 1 or "transaction aborted" in world.log(), "the refusal")
            world.feed(99)
            wait_until(lambda: world.committed_offset() == len(ALL) + 1, "work to go on")
            assert world.read(committed=True) == each_once(*ALL, 99)


def test_a_crash_after_the_store_write_repeats_the_upload_and_announces_it_once(
    impatient_kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    clips, store = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    bus = Bus(impatient_kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, store, [clips])
    apply_topics(variables, tmp_path)
    videos = tiny_footage(clips)[:3]
    uploads = {
        f"c{i}": {"clip_id": f"c{i}", "uri": video.path.as_uri(), "uploaded_at": "2026-01-01T00:00:00Z"}
        for i, video in enumerate(videos)
    }
    bus.publish(UPLOADED, [Record.of(clip_id, event) for clip_id, event in uploads.items()])
    with Service("embed", variables | {VARIABLE: FaultPoint.STORED}, tmp_path) as embedder:
        assert embedder.process.wait(60) == -signal.SIGKILL, embedder.tail()
    left = stored(store)
    assert left
    assert left.keys() <= uploads.keys()
    assert bus.read(EMBEDDED) == []
    with Service("embed", variables, tmp_path) as embedder:
        bus.await_group("streamer-embed", UPLOADED, seconds=60, alive=[embedder])
        embedder.stop()
    assert Counter(record.key for record in bus.read(EMBEDDED)) == Counter(clip_id.encode() for clip_id in uploads)
    whole = stored(store)
    assert whole.keys() == uploads.keys()
    assert {clip_id: whole[clip_id] for clip_id in left} == left


def stored(folder: Path) -> dict[str, list[int]]:
    """Return the times of the frames that the store holds, by clip id; the one model is the default one."""
    with contextlib.closing(open_existing(f"lmdb:{folder}")) as looked_into:
        [model_id] = looked_into.stats().models
    with contextlib.closing(open_existing(f"lmdb:{folder}", model_id=model_id)) as store:
        clip_ids = list(store.clip_ids())
        with store.read(clip_ids) as embeddings:
            return {
                clip_id: embedding.times_ms.tolist()
                for clip_id, embedding in zip(clip_ids, embeddings, strict=True)
                if embedding is not None
            }
