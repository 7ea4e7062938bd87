"""librdkafka's configuration, from the settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException

from streamer.machine import Lack, MachineError
from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.settings import Connection, ServiceSettings
    from streamer.topology import Service

LIBRDKAFKA_LOGGER = logging.getLogger("librdkafka")
_NOT_LOGGED = (
    # The user's properties are passed to every client, whichever of them they are for.
    "and will be ignored by this",
    # Each failed attempt to connect; the error callbacks log connection errors, and not every attempt.
    "FAIL [",
    # A broker that has just started; the client retries.
    "Coordinator load in progress: retrying",
)
LIBRDKAFKA_LOGGER.addFilter(lambda record: not any(words in record.getMessage() for words in _NOT_LOGGED))

MAX_PRODUCED_BYTES = 8 << 20
"""Largest record that we produce; ``topics.toml`` lets outputs and dead letters be that large."""

PARTITIONER = "murmur2_random"
"""The partitioner of Java's clients, so that Kafka Streams and others join our topics with theirs by key. That of
librdkafka itself, ``consistent_random``, is another one: it takes CRC32."""

_MAX_QUEUED_KB = 2_097_151

_OURS = {
    "enable.auto.commit": "offsets are committed in the transactions",
    "enable.auto.offset.store": "offsets are committed in the transactions",
    "enable.idempotence": "transactions need it",
    "transactional.id": "it follows from instance_id",
    "group.id": "it follows from topic_prefix and group_suffix",
    "statistics.interval.ms": "lag and readiness come from the statistics",
    "isolation.level": "records of aborted transactions must not be processed",
    "bootstrap.servers": "use bootstrap_servers",
    # Seen with librdkafka 2.16: an assertion ends the process, or the next fetch is at a random offset and so the
    # position is reset. Whoever begins at the latest record then loses all that is between.
    "check.crcs": "where a check fails, librdkafka loses its position in the log",
}


_CLASSIC_ONLY = frozenset(
    {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type"}
)


def common(settings: Connection) -> dict[str, Any]:
    """Return the properties that every client has; the user's own win, except those that the guarantees depend on."""
    for name, why in _OURS.items():
        if name in settings.kafka:
            raise invalid_setting("kafka", f"{name} cannot be set: {why}")
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        # Reconnect soon when a broker is back, or when the topics are created after the service started.
        "reconnect.backoff.max.ms": 2_000,
        "topic.metadata.refresh.interval.ms": 10_000,
        **settings.read_kafka(),
    }


def group_protocols(settings: Connection) -> list[str]:
    """Return the group protocols to try, the newest first; only the user's own choice where there is one.

    With the newer protocol the broker sets session timeout, heartbeat interval and assignor: a user who sets one of
    them for the client wants the classic one.
    """
    chosen = settings.kafka.get("group.protocol")
    if chosen is not None:
        return [chosen.lower()]
    return ["classic"] if _CLASSIC_ONLY & settings.kafka.keys() else ["consumer", "classic"]


def client_id(settings: ServiceSettings, service: Service) -> str:
    """Return the client id of an instance's consumer, by which its group's description shows it."""
    return f"{settings.group(service.group)}-{settings.instance_id}"


def consumer(
    settings: ServiceSettings, service: Service, protocol: str, callbacks: dict[str, Callable[..., None]]
) -> dict[str, Any]:
    """Return the properties of the consumer of a service's group."""
    group = settings.group(service.group)
    defaults: dict[str, Any] = {
        "auto.offset.reset": "earliest",
        "statistics.interval.ms": 1_000,
        # Prefetched records use memory too.
        "queued.max.messages.kbytes": min(max(1_024, settings.queue_bytes // 1_024), _MAX_QUEUED_KB),
    }
    if protocol == "classic":
        defaults["partition.assignment.strategy"] = "cooperative-sticky"
    own = common(settings)
    if begins_at_the_end(settings):
        # For the client this would also be the answer to a truncated log, and everything before its end would be
        # skipped. The loop itself goes to the end where the group has committed nothing.
        own["auto.offset.reset"] = "earliest"
    return {
        **defaults,
        **own,
        "group.id": group,
        "group.protocol": protocol,
        "client.id": client_id(settings, service),
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        **callbacks,
    }


_LONGEST_POLL_MS = 86_400_000


def reader(settings: Connection, group: str) -> dict[str, Any]:
    """Return the properties of a consumer that commits nothing; ``group`` is a full name.

    A service's ``max.poll.interval.ms`` does not apply: the client rejects one below its default session timeout,
    except with the newer group protocol.
    """
    return {
        **common(settings),
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "max.poll.interval.ms": _LONGEST_POLL_MS,
    }


def peeker(settings: ServiceSettings, service: Service) -> dict[str, Any]:
    """Return the properties of a consumer that reads single records without joining the service's group.

    It bears the group's id, and so needs no privileges but the service's own. A broker
    returns at least one whole batch, however small the fetch size is.
    """
    properties = consumer(settings, service, "classic", {})
    return properties | {
        "client.id": f"{properties['client.id']}-peek",
        "statistics.interval.ms": 0,
        "max.poll.interval.ms": _LONGEST_POLL_MS,
        "queued.min.messages": 1,
        "max.partition.fetch.bytes": 1_024,
    }


_RECEIVE_LIMIT = 2_147_483_647
_GROWTH = 3
"""By how much librdkafka (2.16) enlarges the buffer for a zstd batch whose length the producer has not written down,
until it fits or is beyond ``receive.message.max.bytes``."""
_PARTITION_LIMITS = ("max.partition.fetch.bytes", "fetch.message.max.bytes")
_RESPONSE_LIMITS = ("receive.message.max.bytes", "fetch.max.bytes", "message.max.bytes")


def recoverer(settings: ServiceSettings, service: Service) -> dict[str, Any]:
    """Return the properties of a consumer that decompresses batches of up to ``max_batch_bytes``, one at a time.

    Like :func:`peeker` it joins no group. A broker that is asked for one byte gives one batch, so memory is bounded by
    the largest batch, where the service's own consumer may hold a whole response of them.
    """
    properties = {name: value for name, value in peeker(settings, service).items() if name not in _PARTITION_LIMITS}
    least = max((int(properties[name]) + 512 for name in _RESPONSE_LIMITS if name in properties), default=0)
    return properties | {
        "client.id": f"{properties['client.id']}-recover",
        "auto.offset.reset": "earliest",
        "fetch.message.max.bytes": 1,
        "receive.message.max.bytes": min(_RECEIVE_LIMIT, max(_GROWTH * settings.max_batch_bytes, least)),
    }


def begins_at_the_end(settings: Connection) -> bool:
    """Whether a group without committed offsets reads only new records."""
    return settings.kafka.get("auto.offset.reset", "earliest").lower() in {"latest", "largest", "end"}


def publisher(settings: Connection) -> dict[str, Any]:
    """Return the properties of a producer without transactions, for tools."""
    return {
        "partitioner": PARTITIONER,
        # A missing topic must not come into being with the broker's defaults: one partition, a week's retention.
        "allow.auto.create.topics": False,
        **common(settings),
        "enable.idempotence": True,
    }


def producer(settings: Connection, transactional_id: str) -> dict[str, Any]:
    """Return the properties of a transactional producer."""
    return {
        "linger.ms": 0,
        "message.max.bytes": MAX_PRODUCED_BYTES,
        "transaction.timeout.ms": 60_000,
        **publisher(settings),
        "client.id": transactional_id,
        "transactional.id": transactional_id,
    }


def make_client(kind: Callable[..., Any], properties: dict[str, Any]) -> Any:
    """Make a librdkafka client; a property that it rejects becomes a :class:`SettingsError`.

    Raises :class:`~streamer.machine.MachineError` if this machine has no thread for it.
    """
    try:
        return kind(properties, logger=LIBRDKAFKA_LOGGER)
    except KafkaException as error:
        if error.args[0].code() == KafkaError._CRIT_SYS_RESOURCE:
            raise MachineError(Lack.PROCESSES, error.args[0].str()) from None
        raise invalid_setting("kafka", error.args[0].str()) from None
    except (TypeError, ValueError) as error:
        raise invalid_setting("kafka", error) from None
