"""What Kafka's own tool, kafka-consumer-groups, says of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.kafka_tools import run_tool

if TYPE_CHECKING:
    from streamer.local_kafka.broker import LocalKafka

_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


@dataclass(frozen=True)
class Figures:
    """One partition's line; None is the tool's dash."""

    committed: int | None
    end: int | None
    lag: int | None


def describe(kafka: LocalKafka, group: str) -> dict[int, Figures]:
    """Return what ``kafka-consumer-groups --describe`` prints of a group, by partition."""
    said = run_tool(_TOOL, "--bootstrap-server", kafka.bootstrap_servers, "--describe", "--group", group)
    lines = [line.split() for line in said.splitlines() if line.strip()]
    head = next((line for line in lines if "CURRENT-OFFSET" in line), None)
    assert head is not None, said
    rows = [dict(zip(head, line, strict=False)) for line in lines if line[0] == group]
    return {
        int(row["PARTITION"]): Figures(*(_number(row[name]) for name in ("CURRENT-OFFSET", "LOG-END-OFFSET", "LAG")))
        for row in rows
    }


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)
