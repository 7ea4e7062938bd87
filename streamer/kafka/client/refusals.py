"""What a broker refuses, in words: who lacks which privilege on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import KafkaError

from streamer.kafka.client.acls import ROLES, Operation, Resource

if TYPE_CHECKING:
    from streamer.settings import Connection


_REFUSED = {
    # A producer that may write to no topic at all is told that it lacks a right on the cluster.
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Resource.TOPIC,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Resource.TOPIC,
    KafkaError.GROUP_AUTHORIZATION_FAILED: Resource.GROUP,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Resource.TRANSACTIONAL_ID,
}


def refused(error: KafkaError) -> Resource | None:
    """Return of what kind the resource is that a broker refuses for want of a privilege; None for other errors."""
    resource = _REFUSED.get(error.code())
    if resource is None and error.code() == KafkaError._FATAL:  # a consumer's, which hides its cause
        resource = next((kind for code, kind in _REFUSED.items() if KafkaError(code).str() in error.str()), None)
    return resource


def role_of(group: str) -> str | None:
    """Return the role of the service whose group that is, without the topic prefix."""
    return next((role for role, privileges in ROLES.items() if group in {each.name for each in privileges}), None)


class Refusals:
    """Puts refusals into words: who lacks which privilege on what."""

    def __init__(self, settings: Connection, role: str | None) -> None:
        """``role`` is a key of :data:`ROLES`, or None for a client that is none of those."""
        self._settings = settings
        self._role = role
        user = settings.kafka.get("sasl.username")
        self._who = f"User:{user}" if user else "this client"

    def told(self, error: KafkaError, *names: str, operation: Operation | None = None) -> str:
        """Return what ``error`` says, or the privilege that is missing where it is a refusal.

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
            for name in names or [self._settings.topic(each.name)]
            if each.concerns(self._settings, resource, name)
        ] or [f"{operation or 'a privilege'} on the {resource} {name}" for name in names]
        advice = f"; see docs/security.md, or: streamer acls {self._role}" if self._role else ""
        return f"{self._who} lacks {' or '.join(dict.fromkeys(lines))}{advice}"
