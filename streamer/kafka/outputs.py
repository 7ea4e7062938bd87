"""What a record causes: where it is produced, with which time, and with which headers.

The headers follow CloudEvents' Kafka protocol binding (version 1.0.2, binary mode) and W3C's Trace Context and Baggage.
An output is an event of its own: it carries the trace and the extension attributes of its cause, but its own identity.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from streamer.events import now
from streamer.kafka.records import Output
from streamer.tracing import BAGGAGE, TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confluent_kafka.admin import ConfigEntry

    from streamer.kafka.records import Headers, InFlightRecord
    from streamer.settings import EmbedSettings, RerankSettings
    from streamer.topology import Service

CONTENT_TYPE = "content-type"
GROUP = "streamer.group"
"""Header of an output: the full name of the consumer group whose service made it."""
_TRACE = (TRACEPARENT, TRACESTATE, BAGGAGE)
_CE = "ce_"
_SPECVERSION = "1.0"
_OF_THE_CAUSE = frozenset(
    f"{_CE}{name}"
    for name in (
        *("id", "source", "specversion", "type", "time", "subject", "dataschema", "datacontenttype"),
        # The extension that says where the event's value is kept: that of the cause, not ours.
        "dataref",
        # What earlier versions had to say of the value.
        *("datacontentencoding", "schemaurl", "contenttype"),
    )
)
"""CloudEvents attributes that describe one event and are not carried over to what it causes."""
_ATTRIBUTE = re.compile(f"{_CE}[a-z0-9]+")
"""An attribute's header. In another spelling it is none, and some readers would take it for one that is not carried."""
_MAX_AHEAD_MS = 3_600_000
"""How far ahead of our clock a record's time may be to be taken for its outputs: Kafka's default for what brokers
accept. A producer that stamps in microseconds must not date our outputs into the year 50,000."""

UNKNOWN_RETENTION_MS = 86_400_000.0
"""What is assumed where a client may not describe a topic's configuration: one day, the least that ``topics.toml``
has."""


def carried(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Return the headers that are copied to a record's outputs: its trace, and CloudEvents extension attributes."""
    return tuple(
        (name, value)
        for name, value in headers
        if name in _TRACE or (name not in _OF_THE_CAUSE and _ATTRIBUTE.fullmatch(name))
    )


def is_cloud_event(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    """Tell whether a record is a CloudEvent in binary mode: it has the attributes that say so."""
    names = {name for name, _ in headers}
    return f"{_CE}specversion" in names or f"{_CE}id" in names


class Outputs:
    """Makes the outputs of one service; may be used from several threads."""

    def __init__(self, settings: EmbedSettings | RerankSettings, service: Service, content_type: str) -> None:
        self._role = service.role
        self._topic = settings.topic(service.output)
        self._type = f"io.cliprerank.{service.output}.v1".encode()
        group = settings.group(service.group)
        self._source = (settings.cloudevents_source or f"/{group}").encode()
        self._always = settings.cloudevents == "on"
        self._never = settings.cloudevents == "off"
        self._own_time = settings.output_timestamps == "now"
        self._always_there = ((CONTENT_TYPE, content_type.encode()), (GROUP, group.encode()))

    def of(self, cause: InFlightRecord, event_id: str, value: bytes) -> Output:
        """Return the output of ``cause``, whose event has this id (its key) and value."""
        headers = (*self._always_there, *self._cloud_event(cause, event_id), *carried(cause.record.headers))
        if cause.trace is not None:
            headers = cause.trace.propagated(headers)
        return Output(self._topic, event_id.encode(), value, headers, timestamp=self._timestamp(cause))

    def _cloud_event(self, cause: InFlightRecord, event_id: str) -> Headers:
        if self._never or not (self._always or is_cloud_event(cause.record.headers)):
            return ()
        record = cause.record
        # By the place of its cause: an answer that is made again after a crash is the same event.
        place = [record.log or f"{record.topic}-{record.partition}", str(record.offset)]
        if record.leader_epoch is not None:  # a log that lost its end gives the same offsets again
            place.insert(1, str(record.leader_epoch))
        return (
            (f"{_CE}specversion", _SPECVERSION.encode()),
            (f"{_CE}id", "-".join((self._role, *place)).encode()),
            (f"{_CE}source", self._source),
            (f"{_CE}type", self._type),
            (f"{_CE}subject", event_id.encode()),
            (f"{_CE}time", now().isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()),
        )

    def _timestamp(self, cause: InFlightRecord) -> int | None:
        at = cause.record.timestamp_ms
        if self._own_time or at <= 0 or at > now().timestamp() * 1_000 + _MAX_AHEAD_MS:
            return None
        return at


# -- times that a topic keeps ----------------------------------------------------------------------------------


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


def retime(in_flight: InFlightRecord, kept: Mapping[str, float]) -> bool:
    """Give the current time to those outputs of a completed record that their topic would delete too soon.

    A service that was down for a day, or embeds a whole library again, answers records that are older than its output
    topic keeps anything. Brokers take such outputs, and delete them minutes later; late in an event-time join is better
    than nowhere. ``kept`` is :func:`kept_ms` by topic. Returns whether there were any.
    """
    now_ms = time.time() * 1_000

    def is_kept(output: Output) -> bool:
        limit = kept.get(output.topic)
        return output.timestamp is None or limit is None or leaves_time(output.timestamp, limit, now_ms)

    outputs = in_flight.outputs or ()
    if all(map(is_kept, outputs)):
        return False
    in_flight.outputs = [
        output if is_kept(output) else replace(output, timestamp=None, retimed="retention") for output in outputs
    ]
    return True
