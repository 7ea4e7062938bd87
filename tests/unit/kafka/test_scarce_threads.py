"""A machine that has no thread for a Kafka client is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from streamer.kafka.client import config
from streamer.settings import SettingsError
from tests.support.fake_client import error
from tests.support.fake_kafka import INPUT, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            raise KafkaException(NO_THREAD)
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


def test_no_setting_is_blamed_for_a_lack_of_threads() -> None:
    def refuse(cause: KafkaError) -> Any:
        def make(*_: object, **__: object) -> None:
            raise KafkaException(cause)

        return make

    with pytest.raises(KafkaException, match="Failed to create thread"):
        config.make_client(refuse(NO_THREAD), {})
    with pytest.raises(SettingsError):
        config.make_client(refuse(KafkaError(KafkaError._INVALID_ARG, "no such property")), {})
