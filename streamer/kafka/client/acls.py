"""The minimal privileges of each command on a cluster with ACLs.

``docs/reference/privileges.md``, ``streamer acls`` and error messages are made from the table :data:`ROLES`; the tests
grant exactly these privileges, and revoke them one by one. In Kafka Read, Write, Delete and Alter imply Describe, and
AlterConfigs implies DescribeConfigs: implied privileges are not listed.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from streamer.events import TOPICS
from streamer.topology import (
    AUDIT,
    CLIPS_EMBEDDED,
    CLIPS_UPLOADED,
    DEAD_LETTER_TOPICS,
    DEMO,
    DEMO_PREFIX,
    DLQ_REDRIVE,
    DLQ_SHOW,
    EXPLAIN,
    EXPOSURE,
    QUERY_RERANKED,
    QUERY_RESULTS,
    REPLAY,
    SERVICES,
    TOP,
    TOPICS_APPLY,
    TOPICS_CHECK,
    dead_letter_topic,
    redrive_id,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from streamer.settings import Connection
    from streamer.topology import Service


class Resource(StrEnum):
    """What an ACL is about, as ``kafka-acls`` calls it."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"


class Operation(StrEnum):
    """What an ACL allows, as ``kafka-acls`` calls it."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DELETE = "Delete"
    ALTER = "Alter"
    DESCRIBE = "Describe"
    ALTER_CONFIGS = "AlterConfigs"
    DESCRIBE_CONFIGS = "DescribeConfigs"


_IMPLIED_BY: Mapping[Operation, Collection[Operation]] = {
    Operation.DESCRIBE: (Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER),
    Operation.DESCRIBE_CONFIGS: (Operation.ALTER_CONFIGS,),
}


@dataclass(frozen=True, slots=True)
class Privilege:
    """One line of the table."""

    operation: Operation
    resource: Resource
    name: str
    """Without the prefix and the suffix of an installation."""
    why: str
    prefixed: bool = False
    """Whether all names that begin with this one are meant."""
    suffixed: bool = False
    """Whether ``name`` is a consumer group's, so that the group suffix follows it."""
    instance: bool = False
    """Whether a hyphen and the id of an instance follow."""
    redrive: bool = False
    """Whether ``name`` is the dead-letter topic whose redrives have the transactional id that is meant."""

    def covers(self, operation: Operation) -> bool:
        """Say whether it is the privilege for ``operation``, or implies that one."""
        return self.operation == operation or self.operation in _IMPLIED_BY.get(operation, ())

    def full_name(self, settings: Connection) -> str:
        """Return the name on the cluster of these settings."""
        name = settings.group(self.name) if self.suffixed else settings.topic(self.name)
        return redrive_id(name) if self.redrive else f"{name}-" if self.instance else name

    @property
    def shown(self) -> str:
        """The name as the documentation shows it: without prefix and suffix, ``*`` for what follows."""
        name = redrive_id(self.name) if self.redrive else self.name
        return f"{name}{'-' if self.instance else ''}{'*' if self.prefixed else ''}"

    def concerns(self, settings: Connection, resource: Resource, name: str) -> bool:
        """Say whether it is about the resource of that full name."""
        own = self.full_name(settings)
        return self.resource is resource and (name.startswith(own) if self.prefixed else name == own)


def _topics(operation: Operation, names: Iterable[str], why: str) -> Iterator[Privilege]:
    return (Privilege(operation, Resource.TOPIC, name, why) for name in names)


def _service(service: Service) -> tuple[Privilege, ...]:
    return (
        *_topics(Operation.READ, [service.input], "reads its input, and commits its offsets"),
        Privilege(
            Operation.READ,
            Resource.GROUP,
            service.group,
            "shares the partitions with other instances",
            suffixed=True,
        ),
        *_topics(Operation.WRITE, [service.output], "writes its events"),
        *_topics(Operation.WRITE, [service.dead_letters], "writes dead letters"),
        Privilege(
            Operation.WRITE,
            Resource.TRANSACTIONAL_ID,
            service.group,
            "commits events and offsets together; the instance's id follows in the name",
            prefixed=True,
            suffixed=True,
            instance=True,
        ),
    )


def _redrive(service: Service) -> tuple[Privilege, ...]:
    source = service.input
    group = Privilege(Operation.DESCRIBE, Resource.GROUP, service.group, "checks that it still reads", suffixed=True)
    return (
        *_topics(Operation.READ, [dead_letter_topic(source)], "reads dead letters"),
        *_topics(Operation.WRITE, [dead_letter_topic(source)], "records what was redriven"),
        *_topics(Operation.WRITE, [source], "redrives them"),
        Privilege(
            Operation.WRITE, Resource.TRANSACTIONAL_ID, dead_letter_topic(source), "does both together", redrive=True
        ),
        *(() if service.input_is_compacted else (group,)),
    )


_ALL = (*TOPICS, *DEAD_LETTER_TOPICS)

ROLES: Mapping[str, tuple[Privilege, ...]] = {
    **{service.role: _service(service) for service in SERVICES.values()},
    TOPICS_CHECK: (
        *_topics(Operation.DESCRIBE, _ALL, "checks whether it exists"),
        *_topics(Operation.DESCRIBE_CONFIGS, _ALL, "compares its configuration"),
    ),
    TOPICS_APPLY: (
        *_topics(Operation.CREATE, _ALL, "creates it where it is missing"),
        *_topics(Operation.ALTER, _ALL, "adds partitions"),
        *_topics(Operation.ALTER_CONFIGS, _ALL, "compares its configuration and sets what differs"),
    ),
    DLQ_SHOW.role: tuple(_topics(Operation.READ, DEAD_LETTER_TOPICS, "reads dead letters, outside any group")),
    DLQ_REDRIVE.role: tuple(itertools.chain.from_iterable(map(_redrive, SERVICES.values()))),
    REPLAY.role: (
        *_topics(Operation.READ, [QUERY_RESULTS], "reads the events to replay, where they come from the topic"),
        *_topics(Operation.WRITE, [QUERY_RESULTS], "publishes queries to a running service"),
        *_topics(Operation.READ, [QUERY_RERANKED], "reads the reranked results, outside any group"),
        *_topics(Operation.READ, [dead_letter_topic(QUERY_RESULTS)], "sees what was refused"),
    ),
    AUDIT.role: (
        *_topics(Operation.READ, [CLIPS_UPLOADED], "reads the clips' attributes, outside any group"),
        *_topics(Operation.READ, [QUERY_RERANKED], "reads the reranked results, outside any group"),
        *_topics(Operation.READ, [QUERY_RESULTS], "compares them with the engine's, outside any group"),
    ),
    EXPOSURE.role: (
        *_topics(Operation.READ, [CLIPS_UPLOADED], "reads the clips' attributes, outside any group"),
        *_topics(Operation.READ, [QUERY_RERANKED], "reads the reranked results, outside any group"),
    ),
    EXPLAIN.role: (
        *_topics(Operation.READ, [QUERY_RERANKED], "finds the answer to explain, outside any group"),
        *_topics(Operation.READ, [QUERY_RESULTS], "finds its query and the candidates' addresses, outside any group"),
        *_topics(Operation.READ, [CLIPS_UPLOADED], "finds where the clips can be fetched, outside any group"),
        *_topics(Operation.READ, [CLIPS_EMBEDDED], "finds when they were embedded, outside any group"),
    ),
    TOP.role: (
        *_topics(Operation.READ, [QUERY_RERANKED], "shows what was reranked last, outside any group"),
        *_topics(Operation.READ, DEAD_LETTER_TOPICS, "shows the last dead letters, outside any group"),
    ),
    DEMO: (
        *(
            Privilege(operation, Resource.TOPIC, DEMO_PREFIX, why, prefixed=True)
            for operation, why in (
                (Operation.CREATE, "creates topics of its own on the given brokers"),
                (Operation.DESCRIBE_CONFIGS, "checks their configuration"),
                (Operation.WRITE, "publishes uploads and results; its services write"),
                (Operation.READ, "reads the results; its services read"),
                (Operation.DELETE, "deletes them at the end"),
            )
        ),
        Privilege(Operation.READ, Resource.GROUP, DEMO_PREFIX, "runs the two services", prefixed=True),
        Privilege(Operation.WRITE, Resource.TRANSACTIONAL_ID, DEMO_PREFIX, "runs the two services", prefixed=True),
    ),
}
"""The privileges of each command, by its name with ``-`` for a space; ``dlq-show`` covers ``dlq list``."""


def markdown() -> str:
    """Return the table of each role as the documentation shows it."""
    parts = []
    for role, privileges in ROLES.items():
        parts.append(f"### {role}\n\n| operation | resource | why |\n| --- | --- | --- |\n")
        parts += [f"| {each.operation} | {each.resource} `{each.shown}` | {each.why} |\n" for each in privileges]
        parts.append("\n")
    return "".join(parts)


def as_objects(settings: Connection, role: str) -> list[dict[str, str]]:
    """Return the privileges of ``role`` with full names, in the terms of Kafka's own tools."""
    return [
        {
            "resource": each.resource,
            "name": each.full_name(settings),
            "pattern": "prefixed" if each.prefixed else "literal",
            "operation": each.operation,
            "why": each.why,
        }
        for each in ROLES[role]
    ]


def kafka_acls(settings: Connection, role: str, principal: str) -> list[str]:
    """Return the commands that grant ``principal`` the privileges of ``role``, one for each resource."""
    operations: dict[tuple[Resource, str, bool], list[Operation]] = {}
    for each in ROLES[role]:
        name = each.full_name(settings)
        operations.setdefault((each.resource, name, each.prefixed), []).append(each.operation)
    return [
        shlex.join(
            [
                *("kafka-acls", "--bootstrap-server", settings.bootstrap_servers, "--add"),
                *("--allow-principal", principal),
                *(word for operation in granted for word in ("--operation", operation)),
                *(f"--{resource}", name),
                *(("--resource-pattern-type", "prefixed") if prefixed else ()),
            ]
        )
        for (resource, name, prefixed), granted in operations.items()
    ]
