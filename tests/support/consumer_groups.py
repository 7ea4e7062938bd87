"""What Kafka's own tool, kafka-consumer-groups, says of a group."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.local_kafka import jvm
from streamer.local_kafka.jars import Jar, class_path, fetch, is_intact, read_lock

if TYPE_CHECKING:
    from streamer.local_kafka.broker import LocalKafka

_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
_SHA256 = {"4.4.0": "4eb9a7fbfd63badfd8d1a677aa2d54b47b2b2d442ff7d68fd223972afea1954c"}
"""Of kafka-tools, by the broker's version: no part of the product, which needs no tool."""


@dataclass(frozen=True)
class Figures:
    """One partition's line; None is the tool's dash."""

    committed: int | None
    end: int | None
    lag: int | None


def describe(kafka: LocalKafka, group: str) -> dict[int, Figures]:
    """Return what ``kafka-consumer-groups --describe`` prints of a group, by partition."""
    command = [*_command(), "--bootstrap-server", kafka.bootstrap_servers, "--describe", "--group", group]
    with tempfile.TemporaryDirectory() as folder:  # it writes its log where it runs
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=folder)
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    head = next((line for line in lines if "CURRENT-OFFSET" in line), None)
    assert head is not None, done.stdout + done.stderr
    rows = [dict(zip(head, line, strict=False)) for line in lines if line[0] == group]
    return {
        int(row["PARTITION"]): Figures(*(_number(row[name]) for name in ("CURRENT-OFFSET", "LOG-END-OFFSET", "LAG")))
        for row in rows
    }


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


def _command() -> list[str]:
    jars = class_path()
    version = next(jar.version for jar in read_lock() if jar.artifact == "kafka-clients")
    tools = Jar("org.apache.kafka", "kafka-tools", version, _SHA256[version])
    path = jars[0].parent / tools.filename
    if not is_intact(path, tools):
        fetch(tools, path.parent)
    *options, jars_before = jvm.java_command(Path(jvm.__file__).with_name("log4j2.properties"))
    return [*options, f"{jars_before}:{path}", _TOOL]
