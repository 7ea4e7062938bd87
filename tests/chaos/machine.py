"""What the machine lets this program do: mount a small disk, and limit the processes of others."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.processes import children, limited
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

_DISK_BYTES = 16 << 20
_CHUNK = bytes(1 << 20)
_CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a file system of 16 MiB; yield its folder. Raises CalledProcessError, OSError where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="streamer-disk-"))
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES},mode=700", "streamer-chaos", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        try:
            yield folder
        finally:
            # Lazily, as processes that have just been killed may have files open.
            subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
    finally:
        folder.rmdir()


def can_mount() -> bool:
    """Whether :func:`small_disk` works here."""
    try:
        with small_disk():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Filler:
    """A file that takes what is left of a disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"

    def __enter__(self) -> Self:
        self.fill()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def fill(self) -> None:
        """Take what has become free."""
        with suppress(OSError), self._path.open("ab", buffering=0) as file:
            for size in (len(_CHUNK), 4096):
                with suppress(OSError):
                    while True:
                        file.write(_CHUNK[:size])


@contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    """Let a process and its children start neither processes nor threads meanwhile. Raises ProcessLookupError."""
    family = [pid, *children(pid)]
    with ExitStack() as stack:
        if os.geteuid():
            for each in family:
                stack.enter_context(limited(each, resource.RLIMIT_NPROC, 1))
        else:
            # The limit of a user's processes does not hold for root.
            _move(family, stack.enter_context(_group_of_one()))
        yield


def can_limit_processes() -> bool:
    """Whether :func:`no_more_processes` works here."""
    if os.geteuid():
        return True
    try:
        with _group_of_one():
            return True
    except OSError:
        return False


@contextmanager
def _group_of_one() -> Iterator[Path]:
    """Make a cgroup for one process at most; larger ones may move into it. Raises OSError."""
    parent = _parent()
    group = parent / f"streamer-chaos-{os.getpid()}-{os.urandom(4).hex()}"
    group.mkdir()
    try:
        (group / "pids.max").write_text("1")
        yield group
    finally:
        # One that is just ending holds it for a moment.
        wait_until(lambda: _is_dissolved(group, parent), seconds=10, what="the cgroup to be empty")


def _is_dissolved(group: Path, parent: Path) -> bool:
    _move([int(pid) for pid in (group / "cgroup.procs").read_text().split()], parent)
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _parent() -> Path:
    """Return this process's cgroup of the controller of processes, in either version's hierarchy. Raises OSError."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return _visible(_CGROUPS / "pids", path)
        if not controllers and "pids" in _text(_CGROUPS / path.lstrip("/") / "cgroup.subtree_control"):
            return _CGROUPS / path.lstrip("/")
    raise FileNotFoundError("no cgroup with a controller of processes")


def _visible(root: Path, path: str) -> Path:
    """Return a cgroup's folder; the root where a container is shown its own cgroup there, and not the way to it."""
    folder = root / path.lstrip("/")
    return folder if folder.is_dir() else root


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _move(pids: list[int], group: Path) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))
