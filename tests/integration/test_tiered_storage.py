"""An input topic of which the brokers keep all but the newest segment in a remote tier (KIP-405)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import apply
from streamer.kafka.watch import unreadable
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, load
from tests.support.java import compiled
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running, value
from tests.support.outside import commit, committed
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamer.kafka import Output, Record

SEGMENT = 1 << 20
RECORDS, SIZE = 250, 20_000
"""Five segments."""


class Tier:
    """A broker with a remote tier in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._remote = folder / "remote"
        self._remote.mkdir()
        self.broker = LocalKafka(
            data_dir=folder / "data",
            properties={
                "remote.log.storage.system.enable": "true",
                "remote.log.storage.manager.class.name": "FolderStorage",
                "remote.log.storage.manager.class.path": f"{compiled('FolderStorage')}/",
                "remote.log.metadata.manager.listener.name": "PLAINTEXT",
                "rlmm.config.remote.log.metadata.topic.replication.factor": "1",
                "rlmm.config.remote.log.metadata.topic.num.partitions": "1",
                "rsm.config.dir": str(self._remote),
                "remote.log.manager.task.interval.ms": "500",
                "log.retention.check.interval.ms": "500",
                "log.initial.task.delay.ms": "500",
            },
        )

    def settings(self, prefix: str) -> Settings:
        """Return settings of a service whose input is tiered."""
        servers = self.broker.bootstrap_servers
        # A client that has fetched everything before the tier goes away would not miss it.
        kafka = {"queued.max.messages.kbytes": "1024"}
        settings = load({"bootstrap_servers": servers, "topic_prefix": prefix, "instance_id": "one", "kafka": kafka})
        name = settings.topic(INPUT)
        config = {
            "remote.storage.enable": "true",
            "segment.bytes": str(SEGMENT),
            "local.retention.bytes": "1",
            "file.delete.delay.ms": "100",
        }
        admin = AdminClient({"bootstrap.servers": servers})
        admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(30)
        apply(settings, [spec for spec in load_specs() if spec.name != INPUT])
        return settings

    def await_moved(self, settings: Settings) -> None:
        """Wait until only the newest segment is left on the broker's disk."""
        wait_until(lambda: len(list(self._folder.rglob(f"{settings.topic(INPUT)}-0/*.log"))) == 1)
        assert len(list(self._remote.rglob("log"))) >= RECORDS * SIZE // SEGMENT - 1

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let the remote tier answer nothing, until :meth:`come_back`."""
        (self._remote / "away").touch()
        try:
            yield
        finally:
            self.come_back()

    def come_back(self) -> None:
        (self._remote / "away").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tier]:
    made = Tier(tmp_path_factory.mktemp("tier"))
    with made.broker:
        yield made


def answered(settings: Settings) -> Counter[bytes | None]:
    return Counter(record.key for record in read(settings, OUTPUT))


def expected(times: int, start: int = 0) -> Counter[bytes | None]:
    return Counter({f"q{number}".encode(): times for number in range(start, RECORDS)})


def test_what_lies_in_the_remote_tier_is_processed_once_and_again_after_a_reset(tier: Tier, topic_prefix: str) -> None:
    settings = tier.settings(topic_prefix)
    feed(settings, RECORDS, size=SIZE)
    tier.await_moved(settings)
    with running(settings, echo(settings)) as (metrics, _, _, ended):
        wait_until(lambda: committed(settings).offset == RECORDS)
        assert value(metrics, "streamer_retention_lost_offsets_total", topic=settings.topic(INPUT)) == 0
    assert ended == [True]
    assert answered(settings) == expected(1)
    # To an offset in the remote tier, with the epoch that a commit of ours has: the leader is asked where it ends.
    commit(settings, 20, epoch=committed(settings).leader_epoch)
    with running(settings, echo(settings)) as (metrics, *_):
        wait_until(lambda: committed(settings).offset == RECORDS)
        assert value(metrics, "streamer_log_resets_total", topic=settings.topic(INPUT), reason="beyond_end") == 0
    assert answered(settings) == expected(1) + expected(1, 20)


@pytest.mark.parametrize("begun", [False, True])
def test_while_the_remote_tier_is_away_its_partition_is_named_and_nothing_is_given_up(
    tier: Tier, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    """It is away before the service starts, or goes away while that reads."""
    monkeypatch.setattr(unreadable, "_STILL_S", 2.0)
    settings = tier.settings(topic_prefix)
    feed(settings, RECORDS, size=SIZE)
    tier.await_moved(settings)
    may_work = threading.Event()

    def work(record: Record) -> Sequence[Output]:
        may_work.wait(60)
        return echo(settings)(record)

    with ExitStack() as stack:
        if not begun:
            stack.enter_context(tier.away())
        metrics, health, _, ended = stack.enter_context(running(settings, work, max_records=10))
        if begun:
            wait_until(lambda: value(metrics, "streamer_in_flight_records") > 0)
            stack.enter_context(tier.away())
        may_work.set()
        named = f"unreadable: {settings.topic(INPUT)}[0]: Fetch from broker"
        wait_until(lambda: any(each.startswith(named) for each in health.readiness_problems()), seconds=30)
        before = committed(settings).offset
        time.sleep(6)  # three times as long as a position may stand still
        assert committed(settings).offset == before
        assert begun == (0 < before < RECORDS)
        tier.come_back()
        wait_until(lambda: committed(settings).offset == RECORDS)
        wait_until(lambda: all(each.startswith("start:") for each in health.readiness_problems()))
        assert ended == []
    assert answered(settings) == expected(1)
    assert read(settings, INPUT + ".dlq") == []
