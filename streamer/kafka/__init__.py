"""Kafka: the consume loop, transactions, dead letters, readers and topic administration.

Only this package and the local broker import confluent_kafka. Pipelines need only :class:`InFlightRecord`,
:class:`Output` and :func:`dead_letter`.
"""

from __future__ import annotations

from streamer.kafka.dead_letters import dead_letter
from streamer.kafka.loop import FatalError, Loop, Pipeline, Stop
from streamer.kafka.records import InFlightRecord, Output, Record, carried

__all__ = [
    "FatalError",
    "InFlightRecord",
    "Loop",
    "Output",
    "Pipeline",
    "Record",
    "Stop",
    "carried",
    "dead_letter",
]
