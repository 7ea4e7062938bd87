from __future__ import annotations

import pytest
from confluent_kafka import Consumer

from streamer.kafka.client import config
from streamer.settings import load
from streamer.topology import EMBED, TOP


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max.poll.interval.ms": "10000"},
        {"max.poll.interval.ms": "10000", "group.protocol": "consumer"},
        {"session.timeout.ms": "400000", "max.poll.interval.ms": "500000"},
    ],
    ids=str,
)
def test_whoever_joins_no_group_can_be_made_of_any_services_settings(given: dict[str, str]) -> None:
    settings = load({"kafka": given})
    for properties in (config.peeker(settings, EMBED), config.reader(settings, TOP.group)):
        config.make_client(Consumer, properties).close()
