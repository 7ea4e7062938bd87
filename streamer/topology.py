"""Topics, groups, roles and ports: each name stands here once."""

from __future__ import annotations

DLQ_SUFFIX = ".dlq"


DEAD_LETTER_TOPICS = tuple(topic + DLQ_SUFFIX for topic in ("clips.uploaded", "query.results"))
"""Where records go that cannot be processed: one topic for each topic that is read."""
