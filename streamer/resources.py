"""What this process may use of its machine, and whether what it is configured to use fits into that.

A container that exceeds its memory limit is killed as a whole where its cgroup says so (``memory.oom.group``, as
Kubernetes sets it), whatever process was the largest. A volume that exceeds its size costs a pod its node. So sizes are
compared before anything is used; what cannot be known, such as the size limit of a volume, is left to the deployment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

_CGROUPS, _OWN, _MOUNTS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/self/mounts")
_NO_LIMIT = 1 << 62
"""Version 1 has a number of about this size where there is no limit."""
_IN_MEMORY = {"tmpfs", "ramfs"}
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes that a service may come to use.

    ``own``: of the service without its decoders; ``decoders``: of all of them; ``downloads``: in the temporary folder.
    """

    own: int
    decoders: int
    downloads: int


@dataclass(frozen=True, slots=True)
class Available:
    """The bytes that there are. ``memory``: None where there is no limit that can be read.

    ``disk``: free in the temporary folder; ``disk_is_memory``: what lies there counts as memory.
    """

    memory: int | None
    disk: int
    disk_is_memory: bool


def available() -> Available:
    """Look at this process's cgroup and temporary folder. Raises OSError if there is no such folder."""
    folder = temporary_folder()
    return Available(memory_limit(), shutil.disk_usage(folder).free, _file_system(folder) in _IN_MEMORY)


def temporary_folder() -> str:
    """Return the folder of temporary files. Raises OSError if there is none.

    That is TMPDIR even if it is full or read-only just now, where :func:`tempfile.gettempdir` would choose another
    folder for as long as the process lives: the operator has chosen this one, and given it its size.
    """
    named = os.environ.get("TMPDIR")
    return str(Path(named).absolute()) if named else tempfile.gettempdir()


def resident() -> int:
    """Return the bytes of memory that this process uses now; 0 if that is unknown."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def contradictions(usage: Usage, there_is: Available) -> list[str]:
    """Say in one sentence each what does not fit, and which settings change that."""
    found = []
    memory = usage.own + usage.decoders + (usage.downloads if there_is.disk_is_memory else 0)
    if there_is.memory is not None and memory > there_is.memory:
        besides = f", and the downloads, {_mib(usage.downloads)}, as the temporary folder is in memory"
        found.append(
            f"the memory limit is {_mib(there_is.memory)}, but the service uses {_mib(usage.own)}, and its decoders "
            f"may use {_mib(usage.decoders)} (twice decode_workers, each decode_memory)"
            f"{besides if there_is.disk_is_memory else ''}"
        )
    if usage.downloads > there_is.disk:
        found.append(
            f"the temporary folder (TMPDIR) has {_mib(there_is.disk)} free, but download_bytes is "
            f"{_mib(usage.downloads)}"
        )
    return found


def memory_limit(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int | None:
    """Return the smallest memory limit of this process's cgroup and those around it; None if there is none."""
    limits = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, name = cgroups, "memory.max"
            elif "memory" in controllers.split(","):
                root, name = cgroups / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = Path(path.lstrip("/"))
            # In a container, the path may be the host's, while the mounted hierarchy begins at the container's own.
            limits += [_limit(root / each / name) for each in (group, *group.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(path: Path) -> int | None:
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None
    return limit if limit < _NO_LIMIT else None


def _file_system(folder: str) -> str | None:
    """Return the type of the file system that a folder is on."""
    real = Path(folder).resolve()
    best, found = -1, None
    with contextlib.suppress(OSError):
        for line in _MOUNTS.read_text().splitlines():
            _, mounted, kind, *_ = line.split()
            place = Path(mounted.encode().decode("unicode_escape"))  # blanks are octal there
            if real.is_relative_to(place) and len(place.parts) >= best:
                best, found = len(place.parts), kind
    return found


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"
