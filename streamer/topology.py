"""Which service reads and writes which topics, as which consumer group, under which role and on which port.

Every topic, consumer group and role is named in this module and nowhere else. The names are without the prefix and
the suffix of an installation: :meth:`~streamer.settings.Settings.topic` gives a topic's full name,
:meth:`~streamer.settings.Settings.group` that of a group or of a transactional id.
"""

from __future__ import annotations

from dataclasses import dataclass

DLQ_SUFFIX = ".dlq"
"""Ends the name of a dead letter topic; what comes before it is the input topic's name."""

CLIPS_UPLOADED = "clips.uploaded"
CLIPS_EMBEDDED = "clips.embedded"
QUERY_RESULTS = "query.results"
QUERY_RERANKED = "query.reranked"


def dead_letter_topic(topic: str) -> str:
    """Return the dead letter topic of an input topic; a full name gives a full name."""
    return topic + DLQ_SUFFIX


@dataclass(frozen=True, slots=True)
class Service:
    """One service: what it reads, what it writes, and the names it has on the cluster."""

    role: str
    """The command that runs it, and the key of its privileges in :data:`streamer.kafka.client.acls.ROLES`."""
    group: str
    """Its consumer group, and the beginning of its transactional ids."""
    input: str
    output: str
    metrics_port: int
    """Where /metrics, /livez and /readyz are served unless a setting says otherwise."""
    input_is_compacted: bool = False
    """Whether the input topic keeps only the newest record of a key, so that a record put back may be the only one."""
    producers: int = 1
    """Transactional producers that take turns (:mod:`streamer.kafka.commit.rotation`)."""

    @property
    def dead_letters(self) -> str:
        """The topic that takes the records which the service cannot process."""
        return dead_letter_topic(self.input)

    @property
    def topics(self) -> tuple[str, str, str]:
        """All topics that it uses; the first one is read, the others are written."""
        return self.input, self.output, self.dead_letters


EMBED = Service("embed", "streamer-embed", CLIPS_UPLOADED, CLIPS_EMBEDDED, 9400, input_is_compacted=True)
RERANK = Service("rerank", "streamer-rerank", QUERY_RESULTS, QUERY_RERANKED, 9401, producers=3)
"""Three producers: by the time the first one's turn comes again, its last transaction's markers are written."""

SERVICES = {service.role: service for service in (EMBED, RERANK)}

INPUT_TOPICS = tuple(service.input for service in SERVICES.values())
"""The topics that are read by a service, each of which has a dead letter topic."""

DEAD_LETTER_TOPICS = tuple(service.dead_letters for service in SERVICES.values())
"""Where records go that cannot be processed: one topic for each topic that is read."""

DEMO_PREFIX = "demo-"
"""Begins the names of everything that a demo makes on a cluster."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that reads topics without being a member of a group."""

    role: str
    """The key of its privileges in :data:`streamer.kafka.client.acls.ROLES`."""
    group: str
    """The ``group.id`` that the Kafka client requires; the group is never joined and nothing is committed to it."""


DLQ_SHOW = Tool("dlq-show", "streamer-dlq")
DLQ_REDRIVE = Tool("dlq-redrive", "streamer-dlq")
REPLAY = Tool("replay", "streamer-replay")
TOP = Tool("top", "streamer-top")
READER = Tool("", "streamer-reader")
"""What reads outputs beside the commands: a demo, a test. It has no privileges of its own in the table."""

TOPICS_CHECK, TOPICS_APPLY, DEMO = "topics-check", "topics-apply", "demo"
"""Roles of commands that only administer topics, or that run services under a prefix of their own."""


def redrive_id(topic: str) -> str:
    """Return the transactional id of the redrive of an input topic: redrives of one topic fence each other."""
    return f"{DLQ_REDRIVE.group}-{topic}"
