"""Running processes: which of them a process has started, what they are denied, and when they stand still."""

from __future__ import annotations

import gc
import os
import resource
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


@contextmanager
def limited(pid: int, which: int, most: int) -> Iterator[None]:
    """Lower a limit of a running process meanwhile. Raises ProcessLookupError."""
    soft, hard = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, which, (soft, hard))


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """Have processes stand still meanwhile: connections stay open, and nothing is answered."""
    pids = [*pids]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def await_quiet_descriptors() -> None:
    """Wait until nobody in this process opens or closes descriptors any more, such as the server its connection."""
    gc.collect()
    seen: list[set[str]] = []

    def quiet() -> bool:
        seen.append({each.name for each in Path("/proc/self/fd").iterdir()})
        return len(seen) > 5 and all(each == seen[-1] for each in seen[-5:])

    wait_until(quiet, "descriptors that stay as they are", pause=0.05)
