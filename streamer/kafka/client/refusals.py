"""Authorization errors in words: who lacks which privilege on which resource."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import KafkaError

from streamer.kafka.client.acls import ROLES, Operation, Resource

if TYPE_CHECKING:
    from streamer.settings import Connection


_REFUSED = {
    # A producer that may write to no topic at all gets an authorization error of the cluster.
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Resource.TOPIC,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Resource.TOPIC,
    KafkaError.GROUP_AUTHORIZATION_FAILED: Resource.GROUP,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Resource.TRANSACTIONAL_ID,
}


def refused(error: KafkaError) -> Resource | None:
    """Return the kind of resource on which a privilege is missing; None for other errors."""
    resource = _REFUSED.get(error.code())
    if resource is None and error.code() == KafkaError._FATAL:  # a consumer's fatal error, which hides its cause
        resource = next((kind for code, kind in _REFUSED.items() if KafkaError(code).str() in error.str()), None)
    return resource


class Refusals:
    """Describes authorization errors: who lacks which privilege on which resource."""

    def __init__(self, settings: Connection, role: str | None) -> None:
        """``role`` is a key of :data:`ROLES`, or None for a client that is none of those."""
        self._settings = settings
        self._role = role
        user = settings.kafka.get("sasl.username")
        self._who = f"User:{user}" if user else "this client"

    def describe(self, error: KafkaError, *names: str, operation: Operation | None = None) -> str:
        """Return the error's own text, or which privilege is missing where it is an authorization error.

        ``names`` are the resources that it may be about, by their full names; none: all of that kind in the table.
        """
        resource = refused(error)
        return error.str() if resource is None else self.missing(resource, *names, operation=operation)

    def missing(self, resource: Resource, *names: str, operation: Operation | None = None) -> str:
        """Say which privilege on which of ``names`` is missing; one of those, where it may be several."""
        privileges = [
            each
            for each in ROLES.get(self._role or "", ())
            if each.resource is resource and (operation is None or each.covers(operation))
        ]
        lines = [
            f"{each.operation} on the {resource} {name}"
            for each in privileges
            for name in names or [each.full_name(self._settings)]
            if each.concerns(self._settings, resource, name)
        ] or [f"{operation or 'a privilege'} on the {resource} {name}" for name in names]
        advice = f"; see docs/security.md, or: streamer acls {self._role}" if self._role else ""
        return f"{self._who} lacks {' or '.join(dict.fromkeys(lines))}{advice}"
