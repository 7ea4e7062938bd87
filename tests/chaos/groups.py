"""How far a consumer group has come."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException

from tests.support.driver import left
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.driver import Bus

_POLL_S = 0.5


def await_committed(bus: Bus, group: str, topic: str, *, seconds: float) -> None:
    """Wait until a group has committed all that a topic holds, while brokers may be away.

    Raises TimeoutError, which says what is left.
    """
    asker = bus.asker(group)
    left_now = partial(_left, bus, asker, topic)
    try:
        wait_until(lambda: not left_now(), lambda: f"{group} to commit {left_now()}", seconds=seconds, pause=_POLL_S)
    finally:
        asker.close()


def _left(bus: Bus, asker: Consumer, topic: str) -> str:
    try:
        return left(asker, bus.ends(topic))
    except KafkaException as error:
        return str(error)
