"""Which processes a process has started."""

from __future__ import annotations

from pathlib import Path


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
