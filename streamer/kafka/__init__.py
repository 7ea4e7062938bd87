"""Kafka: the consume loop, transactions, dead letters, readers and topic administration.

Only this package and the local broker import confluent_kafka. Pipelines need only :class:`InFlightRecord`,
:class:`Outputs`, which makes their :class:`Output`, and :func:`dead_letter`.
"""

from __future__ import annotations

from streamer.kafka.dead_letters import dead_letter
from streamer.kafka.loop import Loop
from streamer.kafka.outputs import Outputs
from streamer.kafka.pipeline import FatalError, Pipeline, Stop
from streamer.kafka.records import InFlightRecord, Output, Record

__all__ = [
    "FatalError",
    "InFlightRecord",
    "Loop",
    "Output",
    "Outputs",
    "Pipeline",
    "Record",
    "Stop",
    "dead_letter",
]
