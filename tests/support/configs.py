"""Configuration of topics and brokers, changed as an administrator does."""

from __future__ import annotations

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType


def alter_config(
    admin: AdminClient,
    name: str,
    key: str,
    value: str | None,
    *,
    kind: ResourceType = ResourceType.TOPIC,
    seconds: float = 30,
) -> None:
    """Set one property of a resource and leave the others; None goes back to the default.

    Raises KafkaException, or TimeoutError after ``seconds``.
    """
    operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
    entry = ConfigEntry(key, value or "", incremental_operation=operation)
    resource = ConfigResource(kind, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(seconds)
