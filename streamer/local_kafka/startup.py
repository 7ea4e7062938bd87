"""The broker's startup cache: its classes as the Java runtime has loaded and linked them once (JEP 483).

``python -m streamer.local_kafka.startup`` writes it, beside the jars. It takes 20 seconds and 70 MB, and each later
start of a broker takes half the processor time. A machine that starts a broker now and then does not need it.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from streamer.local_kafka.broker import LocalKafka
from streamer.local_kafka.jars import BrokerError, class_path
from streamer.local_kafka.jvm import java_command, startup_cache

_TIMEOUT_S = 300


def write_startup_cache() -> Path:
    """Write the cache where it is missing, from one start of a broker; returns its path.

    Safe while other processes do the same. Raises :class:`streamer.local_kafka.jars.BrokerError`.
    """
    cache = startup_cache(class_path())
    if cache.exists():
        return cache
    # Inside the folder, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".startup-", dir=cache.parent) as staging:
        seen, written = Path(staging) / "classes.aotconf", Path(staging) / cache.name
        recorded = f"-XX:AOTConfiguration={seen}"
        with LocalKafka(java_options=["-XX:AOTMode=record", recorded]):
            pass
        command = [*java_command(), "-XX:AOTMode=create", recorded, f"-XX:AOTCache={written}"]
        done = subprocess.run(  # noqa: S603 - the runtime of a package and this package's jars
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode or not written.exists():
            raise BrokerError(f"the startup cache cannot be written: {done.stdout}{done.stderr}")
        written.rename(cache)
    return cache


if __name__ == "__main__":
    write_startup_cache()
