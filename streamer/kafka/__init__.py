"""Kafka: the consume loop, transactions, dead letters, topic administration and the local broker.

All that imports confluent_kafka. Pipelines need only :class:`Work`, :class:`Output` and :func:`dead_letter`.
"""

from __future__ import annotations

from streamer.kafka.loop import FatalError, Loop, Pipeline, Stop
from streamer.kafka.partitions import Work
from streamer.kafka.records import DLQ_SUFFIX, Output, Record, carried, dead_letter

__all__ = [
    "DLQ_SUFFIX",
    "FatalError",
    "Loop",
    "Output",
    "Pipeline",
    "Record",
    "Stop",
    "Work",
    "carried",
    "dead_letter",
]
