"""A Kafka Streams application in Java, from nothing but what the local Kafka brings and two jars more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.java import class_path, compiled, run_java

if TYPE_CHECKING:
    from collections.abc import Sequence


def java_partitions(keys: Sequence[str], count: int) -> list[int]:
    """Return where Java's default partitioner puts each key in a topic of ``count`` partitions."""
    return [int(line) for line in _join("partitions", str(count), *keys).split()]


def joined_pairs(
    servers: str, application: str, left: str, right: str, *, window_ms: int, wanted: int, seconds: int = 60
) -> int:
    """Join two topics by key within a window of event time, and return how many pairs were found.

    It waits for ``wanted`` of them for so many ``seconds``, and a moment longer for more.
    """
    arguments = (servers, application, left, right, str(window_ms), str(wanted), str(seconds))
    output = _join(*arguments)
    [pairs] = [line.removeprefix("pairs ") for line in output.splitlines() if line.startswith("pairs ")]
    return int(pairs)


def _join(*arguments: str) -> str:
    return run_java(f"{compiled('Join')}:{class_path()}", "Join", *arguments)
