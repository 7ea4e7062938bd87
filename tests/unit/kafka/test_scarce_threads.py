"""A machine that has no thread for a Kafka client is waited for."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.kafka.client import config
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.readers.recovery import Finished
from streamer.kafka.watch import unreadable
from streamer.machine import Lack, MachineError
from streamer.settings import SettingsError, load
from streamer.topology import RERANK
from tests.support.fake_client import TIMED_OUT, FakeMessage, error
from tests.support.fake_kafka import INPUT, Immediate, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.fake_kafka import FakeKafka

NO_THREAD = KafkaError(KafkaError._CRIT_SYS_RESOURCE, "Failed to create thread")


@pytest.mark.parametrize("producers", [1, 3])
def test_a_producer_is_replaced_as_soon_as_there_is_a_thread_for_it(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch, producers: int
) -> None:
    one = Instance(fake, producers=producers)
    refused = 0

    def make_client(kind: type, properties: dict[str, Any]) -> Any:
        nonlocal refused
        if kind is Producer:
            refused += 1
            raise MachineError(Lack.PROCESSES, NO_THREAD.str())
        return fake.make_client(kind, properties)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        yield from until(one.is_caught_up)
        fake.fail("commit_transaction", error(KafkaError.UNKNOWN, fatal=True))
        with monkeypatch.context() as patched:
            patched.setattr(config, "make_client", make_client)
            fake.cluster.publish(INPUT, b"b")
            yield from nothing_happens(fake, 5)
            assert refused > 1
            assert fake.outputs() == [b"a"]
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_all_fired()
    assert fake.outputs() == [b"a", b"b"]
    fake.assert_exactly_once()


LACK = MachineError(Lack.PROCESSES, "can't start new thread")
CALLS = ["init_transactions", "send_offsets_to_transaction", "commit_transaction", "abort_transaction"]


@contextmanager
def no_thread_for(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[list[str]]:
    """Let there be no thread for these requests meanwhile; give the names of those that were not made."""
    refused = list[str]()
    call = Immediate.__call__

    def refuse(self: Immediate, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        if function.__name__ not in names:
            return call(self, function, *arguments, limit=limit)
        refused.append(function.__name__)
        raise LACK

    with monkeypatch.context() as patched:
        patched.setattr(Immediate, "__call__", refuse)
        yield refused


@pytest.mark.parametrize("seconds", [5, 50], ids=["for a while", "for longer than an outcome may be unknown"])
@pytest.mark.parametrize("names", [[name] for name in CALLS[1:]] + [CALLS], ids=" ".join)
@pytest.mark.parametrize("producers", [1, 3])
def test_a_request_for_which_there_is_no_thread_is_waited_for_and_costs_no_record(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch, producers: int, names: list[str], seconds: float
) -> None:
    one = Instance(fake, producers=producers)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        yield from until(one.is_caught_up)
        with no_thread_for(monkeypatch, *names) as refused:
            if names == ["abort_transaction"]:  # something has to be aborted
                fake.fail("send_offsets", TIMED_OUT)
            fake.cluster.publish(INPUT, b"b")
            yield from nothing_happens(fake, seconds)
            assert refused
            if names == ["abort_transaction"] and seconds > 30:
                # Another producer ends what this one cannot abort, as after any other long silence.
                assert one.value("streamer_transactions_total", outcome="restarted") == 1
            else:
                assert fake.outputs() == [b"a"]
                assert one.not_ready["transactions"] == str(LACK)
        yield from until(one.is_caught_up)
        yield from until(lambda: "transactions" not in one.not_ready)

    assert one.run(story())
    assert fake.outputs() == [b"a", b"b"]
    fake.assert_exactly_once()


def test_a_service_that_starts_without_a_thread_for_its_requests_waits(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        with no_thread_for(monkeypatch, *CALLS) as refused:
            yield from nothing_happens(fake, 5)
            assert "init_transactions" in refused
            assert one.not_ready["transactions"] == str(LACK)
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


@contextmanager
def no_thread_for_a(
    monkeypatch: pytest.MonkeyPatch, fake: FakeKafka, refused: type, times: int = 10**6
) -> Iterator[list[str]]:
    """Let there be no thread for a client of that kind meanwhile, so many times; give the ids of those refused."""
    names = list[str]()

    def make_client(kind: type, properties: dict[str, Any]) -> Any:
        if kind is not refused or len(names) == times:
            return fake.make_client(kind, properties)
        names.append(str(properties.get("client.id")))
        raise MachineError(Lack.PROCESSES, NO_THREAD.str())

    with monkeypatch.context() as patched:
        patched.setattr(config, "make_client", make_client)
        yield names


def test_a_consumer_that_must_rejoin_does_so_as_soon_as_there_is_a_thread_for_it(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        yield from until(one.is_caught_up)
        before = one.consumer
        with no_thread_for_a(monkeypatch, fake, Consumer) as refused:
            one.consumer.incoming.append(FakeMessage("", -1, fault=error(KafkaError.NOT_COORDINATOR)))
            yield from until(lambda: len(refused) > 5)
            assert one.consumer is before
            assert one.not_ready["machine"] == "processes: Failed to create thread"
            assert one.value("streamer_machine_faults_total", lack="processes") > 5
        yield from until(lambda: one.consumer is not before)
        fake.cluster.publish(INPUT, b"b")
        yield from until(one.is_caught_up)
        yield from until(lambda: not one.not_ready)

    assert one.run(story())
    fake.assert_exactly_once()


def test_a_consumer_that_must_change_its_protocol_keeps_its_choice_until_there_is_a_thread_for_it(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = GroupMembership(load({"instance_id": "one"}), RERANK, {})
    membership.join(on_assign=_ignored, on_revoke=_ignored, on_lost=_ignored)
    fatal, before = error(KafkaError._FATAL), membership.consumer
    with no_thread_for_a(monkeypatch, fake, Consumer), pytest.raises(MachineError):
        membership.fall_back(fatal)
    assert (membership.protocol, membership.consumer) == ("consumer", before)
    assert membership.fall_back(fatal)
    assert membership.protocol == "classic"


def _ignored(_consumer: object, _partitions: object) -> None:
    pass


def test_a_lack_of_threads_for_the_watches_holds_up_no_record(fake: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        # The first is needed to see that the topics are there; the others only measure the lag.
        with no_thread_for_a(monkeypatch, fake, AdminClient, times=2) as refused:
            yield from until(lambda: len(refused) == 2)
            assert one.not_ready["machine"] == "processes: Failed to create thread"
        with no_thread_for_a(monkeypatch, fake, AdminClient) as refused:
            one.loop._topics._admin = fake.make_client(AdminClient, {})
            yield from until(one.is_caught_up)
            yield from until(lambda: len(refused) > 3)
            fake.cluster.publish(INPUT, b"b")
            yield from until(one.is_caught_up)
        yield from until(lambda: not one.not_ready)

    assert one.run(story())
    fake.assert_exactly_once()


def test_a_recovery_is_started_as_soon_as_there_is_a_thread_for_it(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, finished = Instance(fake), list[int]()

    class AtOnce:
        """A recovery that finds that the consumer can go on where it stands."""

        def __init__(self, _settings: object, _service: object, place: TopicPartition, *, log: str) -> None:
            if not finished:
                raise LACK
            del log
            self._found: list[Finished] = [Finished(place.offset)]

        def take(self) -> Finished | None:
            return self._found.pop() if self._found else None

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(unreadable, "Recovery", AtOnce)
    monkeypatch.setattr(unreadable, "time", fake.clock)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        yield from until(one.is_caught_up)
        bad = KafkaError(KafkaError._BAD_COMPRESSION, "no such luck")
        one.consumer.incoming.append(FakeMessage(INPUT, 0, fault=bad, offset=1))
        yield from until(lambda: one.value("streamer_machine_faults_total", lack="processes") > 2)
        assert {"machine", "unreadable"} <= one.not_ready.keys()
        finished.append(1)
        yield from until(lambda: "unreadable" not in one.not_ready)
        fake.cluster.publish(INPUT, b"b")
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


def test_no_setting_is_blamed_for_a_lack_of_threads() -> None:
    def refuse(cause: KafkaError) -> Any:
        def make(*_: object, **__: object) -> None:
            raise KafkaException(cause)

        return make

    with pytest.raises(MachineError, match="Failed to create thread"):
        config.make_client(refuse(NO_THREAD), {})
    with pytest.raises(SettingsError):
        config.make_client(refuse(KafkaError(KafkaError._INVALID_ARG, "no such property")), {})
