"""Kafka's own command-line tools, which the product does not need."""

from __future__ import annotations

import subprocess
import tempfile

from streamer.local_kafka import jvm
from streamer.local_kafka.jars import Jar, class_path, fetch, is_intact, read_lock

_SHA256 = {"4.4.0": "4eb9a7fbfd63badfd8d1a677aa2d54b47b2b2d442ff7d68fd223972afea1954c"}
"""Of kafka-tools, by the broker's version."""


def run_tool(main_class: str, *arguments: str, seconds: float = 60) -> str:
    """Run a tool as its shell script does, and return what it prints. Raises CalledProcessError, TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:  # it writes its log where it runs
        command = [*_java(), main_class, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True, cwd=folder)
    return done.stdout + done.stderr


def _java() -> list[str]:
    jars = class_path()
    version = next(jar.version for jar in read_lock() if jar.artifact == "kafka-clients")
    tools = Jar("org.apache.kafka", "kafka-tools", version, _SHA256[version])
    path = jars[0].parent / tools.filename
    if not is_intact(path, tools):
        fetch(tools, path.parent)
    *options, jars_before = jvm.java_command()
    return [*options, f"{jars_before}:{path}"]
