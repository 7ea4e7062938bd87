"""The least that each command may do on a cluster with ACLs, and the words for what a broker refuses.

:data:`ROLES` is the one table. ``docs/security.md``, ``streamer acls`` and the messages of errors are made from it; the
tests grant exactly what it says, and take away one privilege after the other. Kafka takes Read, Write, Delete and Alter
to imply Describe, and AlterConfigs to imply DescribeConfigs: what is implied is not listed.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from streamer.events import TOPICS
from streamer.topology import DEAD_LETTER_TOPICS, DLQ_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from streamer.settings import Connection


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
    """One line of the table. ``name`` is without the topic prefix; ``prefixed``: all names that begin so are meant."""

    operation: Operation
    resource: Resource
    name: str
    why: str
    prefixed: bool = False

    def covers(self, operation: Operation) -> bool:
        """Say whether it is the privilege for ``operation``, or implies that one."""
        return self.operation == operation or self.operation in _IMPLIED_BY.get(operation, ())

    def concerns(self, settings: Connection, resource: Resource, name: str) -> bool:
        """Say whether it is about the resource of that full name."""
        own = settings.topic(self.name)
        return self.resource is resource and (name.startswith(own) if self.prefixed else name == own)


def _topics(operation: Operation, names: Iterable[str], why: str) -> Iterator[Privilege]:
    return (Privilege(operation, Resource.TOPIC, name, why) for name in names)


def _service(group: str, source: str, output: str) -> tuple[Privilege, ...]:
    return (
        *_topics(Operation.READ, [source], "reads its input, and commits how far it has come"),
        Privilege(Operation.READ, Resource.GROUP, group, "shares the partitions with other instances"),
        *_topics(Operation.WRITE, [output], "writes its events"),
        *_topics(Operation.WRITE, [source + DLQ_SUFFIX], "writes dead letters"),
        Privilege(
            Operation.WRITE,
            Resource.TRANSACTIONAL_ID,
            f"{group}-",
            "commits events and offsets together; the instance's id follows in the name",
            prefixed=True,
        ),
    )


def _redrive(source: str) -> tuple[Privilege, ...]:
    return (
        *_topics(Operation.READ, [source + DLQ_SUFFIX], "reads dead letters"),
        *_topics(Operation.WRITE, [source + DLQ_SUFFIX], "notes what was put back"),
        *_topics(Operation.WRITE, [source], "puts them back"),
        Privilege(Operation.WRITE, Resource.TRANSACTIONAL_ID, f"streamer-dlq-{source}", "does both together"),
    )


_ALL = (*TOPICS, *DEAD_LETTER_TOPICS)
_DEMO = "demo-"

ROLES: Mapping[str, tuple[Privilege, ...]] = {
    "embed": _service("streamer-embed", "clips.uploaded", "clips.embedded"),
    "rerank": _service("streamer-rerank", "query.results", "query.reranked"),
    "topics-check": (
        *_topics(Operation.DESCRIBE, _ALL, "sees whether it exists"),
        *_topics(Operation.DESCRIBE_CONFIGS, _ALL, "compares its configuration"),
    ),
    "topics-apply": (
        *_topics(Operation.CREATE, _ALL, "creates it where it is missing"),
        *_topics(Operation.ALTER, _ALL, "adds partitions"),
        *_topics(Operation.ALTER_CONFIGS, _ALL, "compares its configuration and sets what differs"),
    ),
    "dlq-show": tuple(_topics(Operation.READ, DEAD_LETTER_TOPICS, "reads dead letters, outside any group")),
    "dlq-redrive": (*_redrive("clips.uploaded"), *_redrive("query.results")),
    "replay": (
        *_topics(Operation.READ, ["query.results"], "reads the events to replay, where they come from the topic"),
        *_topics(Operation.WRITE, ["query.results"], "asks, through a running service"),
        *_topics(Operation.READ, ["query.reranked"], "reads the answers, outside any group"),
        *_topics(Operation.READ, ["query.results" + DLQ_SUFFIX], "sees what was refused"),
    ),
    "top": (
        *_topics(Operation.READ, ["query.reranked"], "shows what was reranked last, outside any group"),
        *_topics(Operation.READ, DEAD_LETTER_TOPICS, "shows the last dead letters, outside any group"),
    ),
    "demo": (
        *(
            Privilege(operation, Resource.TOPIC, _DEMO, why, prefixed=True)
            for operation, why in (
                (Operation.CREATE, "has topics of its own, on brokers that it is pointed to"),
                (Operation.DESCRIBE_CONFIGS, "sees that they are as they should be"),
                (Operation.WRITE, "publishes uploads and results; its services write"),
                (Operation.READ, "reads what came out; its services read"),
                (Operation.DELETE, "removes them in the end"),
            )
        ),
        Privilege(Operation.READ, Resource.GROUP, _DEMO, "runs the two services", prefixed=True),
        Privilege(Operation.WRITE, Resource.TRANSACTIONAL_ID, _DEMO, "runs the two services", prefixed=True),
    ),
}
"""What each command needs, by its name with ``-`` for a space; ``dlq-show`` is ``dlq list`` too."""


def markdown() -> str:
    """Return the table of each role as the documentation shows it."""
    parts = []
    for role, privileges in ROLES.items():
        parts.append(f"### {role}\n\n| operation | resource | why |\n| --- | --- | --- |\n")
        parts += [
            f"| {each.operation} | {each.resource} `{each.name}{'*' if each.prefixed else ''}` | {each.why} |\n"
            for each in privileges
        ]
        parts.append("\n")
    return "".join(parts)


def as_objects(settings: Connection, role: str) -> list[dict[str, str]]:
    """Return what ``role`` needs, with full names, in the words of Kafka's own tools."""
    return [
        {
            "resource": each.resource,
            "name": settings.topic(each.name),
            "pattern": "prefixed" if each.prefixed else "literal",
            "operation": each.operation,
            "why": each.why,
        }
        for each in ROLES[role]
    ]


def kafka_acls(settings: Connection, role: str, principal: str) -> list[str]:
    """Return the commands that grant ``principal`` what ``role`` needs, one for each resource."""
    operations: dict[tuple[Resource, str, bool], list[Operation]] = {}
    for each in ROLES[role]:
        operations.setdefault((each.resource, settings.topic(each.name), each.prefixed), []).append(each.operation)
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
