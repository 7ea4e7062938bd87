"""Topics, consumer groups, roles and default ports of the services.

Every topic, consumer group and role is named in this module and nowhere else. Names here have no prefix and no suffix
of an installation: :meth:`~streamer.settings.Settings.topic` gives a topic's full name,
:meth:`~streamer.settings.Settings.group` that of a group or of a transactional id.
"""

from __future__ import annotations

from dataclasses import dataclass

DLQ_SUFFIX = ".dlq"
"""The suffix of a dead-letter topic's name; the rest is the name of its input topic."""

CLIPS_UPLOADED = "clips.uploaded"
CLIPS_EMBEDDED = "clips.embedded"
QUERY_RESULTS = "query.results"
QUERY_RERANKED = "query.reranked"


def dead_letter_topic(topic: str) -> str:
    """Return the dead-letter topic of an input topic; a full name returns a full name."""
    return topic + DLQ_SUFFIX


@dataclass(frozen=True, slots=True)
class Service:
    """One service: its topics, and its names on the cluster."""

    role: str
    """The command that runs the service, and the key of its ACLs in :data:`streamer.kafka.client.acls.ROLES`."""
    group: str
    """Its consumer group, and the prefix of its transactional ids."""
    input: str
    output: str
    metrics_port: int
    """The default port of /metrics, /livez and /readyz."""
    input_is_compacted: bool = False
    """Whether the input topic is compacted, so that a redriven record may be the only one of its key."""
    producers: int = 1
    """Number of transactional producers in rotation (:mod:`streamer.kafka.commit.rotation`)."""

    @property
    def dead_letters(self) -> str:
        """The dead-letter topic of the service's input topic."""
        return dead_letter_topic(self.input)

    @property
    def topics(self) -> tuple[str, str, str]:
        """All topics of the service; the first one is its input, the others are its outputs."""
        return self.input, self.output, self.dead_letters


EMBED = Service("embed", "streamer-embed", CLIPS_UPLOADED, CLIPS_EMBEDDED, 9400, input_is_compacted=True)
RERANK = Service("rerank", "streamer-rerank", QUERY_RESULTS, QUERY_RERANKED, 9401, producers=3)
"""Three producers: when the first one is used again, its last transaction's markers have been written."""

EXPOSURE_METRICS_PORT = 9402
"""The default port of /metrics, /livez and /readyz of ``streamer exposure``."""

SERVICES = {service.role: service for service in (EMBED, RERANK)}

INPUT_TOPICS = tuple(service.input for service in SERVICES.values())
"""The services' input topics, each of which has a dead-letter topic."""

DEAD_LETTER_TOPICS = tuple(service.dead_letters for service in SERVICES.values())
"""The dead-letter topics, one for each input topic."""

DEMO_PREFIX = "demo-"
"""The prefix of all names that a demo creates on a cluster."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that reads topics without being a member of a group."""

    role: str
    """The key of its ACLs in :data:`streamer.kafka.client.acls.ROLES`."""
    group: str
    """The ``group.id`` that the Kafka client requires; the group is never joined and nothing is committed to it."""


DLQ_SHOW = Tool("dlq-show", "streamer-dlq")
DLQ_REDRIVE = Tool("dlq-redrive", "streamer-dlq")
REPLAY = Tool("replay", "streamer-replay")
AUDIT = Tool("audit", "streamer-audit")
EXPOSURE = Tool("exposure", "streamer-exposure")
EXPLAIN = Tool("explain", "streamer-explain")
TOP = Tool("top", "streamer-top")
READER = Tool("", "streamer-reader")
"""A reader of outputs other than the commands: a demo or a test. The table of ACLs has no entry for it."""

TOPICS_CHECK, TOPICS_APPLY, DEMO = "topics-check", "topics-apply", "demo"
"""Roles of commands that only administer topics, or that run services under their own prefix."""


def redrive_id(dead_letters: str) -> str:
    """Return the transactional id of the redrives of a dead-letter topic, whose full name is given.

    They fence each other, whatever settings each has the name from.
    """
    return f"{DLQ_REDRIVE.group}-{dead_letters.removesuffix(DLQ_SUFFIX)}"
