"""The endpoints of a service in a process of their own, whose threads and descriptors are theirs alone.

``python -m tests.support.lone_endpoints`` prints the port, and for each line of its standard input how many threads and
descriptors it has. It may open 1,024 descriptors, as many a system allows by default.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from streamer import logs
from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.metrics import Metrics
from streamer.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

_DESCRIPTORS = 1024


class Cost(NamedTuple):
    """What the process has at the moment."""

    threads: int
    descriptors: int


class LoneEndpoints:
    """The process, and what it says of itself."""

    def __init__(self, asked: IO[str], told: IO[str]) -> None:
        self._asked, self._told = asked, told
        self.port = int(told.readline())

    def cost(self) -> Cost:
        self._asked.write("\n")
        self._asked.flush()
        return Cost(*map(int, self._told.readline().split()))


@contextmanager
def lone_endpoints() -> Iterator[LoneEndpoints]:
    """Serve for the length of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.lone_endpoints"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield LoneEndpoints(process.stdin, process.stdout)
        process.stdin.close()  # which ends it
        assert process.wait(60) == 0


def main() -> None:
    logs.configure(load({}))  # to standard error
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
    metrics = Metrics()
    health = Health(metrics)
    health.ready("start")
    with closing(Endpoints(health, metrics, host="127.0.0.1", port=0)) as served:
        print(served.port, flush=True)  # noqa: T201 - the parent reads it
        for _ in sys.stdin:
            descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
            print(threading.active_count(), descriptors, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
