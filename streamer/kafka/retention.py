"""For how long a topic keeps its records: retention goes by their times, which ours may have from older records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka.admin import ConfigEntry

UNKNOWN_MS = 86_400_000.0
"""What is assumed where a client may not describe a topic's configuration: one day, the least that ``topics.toml``
has."""


def kept_ms(config: Mapping[str, ConfigEntry]) -> float:
    """Return for how many milliseconds a topic of this configuration keeps a record after the record's own time.

    That is for ever where it does not delete by time, or sets the times of its records itself.
    """
    if config["message.timestamp.type"].value == "LogAppendTime":
        return math.inf
    deletes = "delete" in (config["cleanup.policy"].value or "").split(",")
    limit = float(config["retention.ms"].value or -1)
    return limit if deletes and limit >= 0 else math.inf


def leaves_time(timestamp_ms: float, kept: float, now_ms: float) -> bool:
    """Tell whether a record of that time is kept for at least half as long as one of the current time."""
    return now_ms - timestamp_ms < kept / 2
