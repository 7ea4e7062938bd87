"""Running a program as an ordinary user, whoever runs the tests."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that an ordinary user can write to, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="streamer-ordinary-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def run(*arguments: str | Path, as_nobody: bool) -> str:
    """Run Python with these arguments and the tests' modules; return what it printed, and fail where it fails."""
    command = [*(becoming() if as_nobody else []), sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": "/"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def becoming(user: int = NOBODY) -> list[str]:
    """Return what goes before a command so that an ordinary user runs it, in the process that was started.

    As root, in a mount namespace of its own where the interpreter lies in a folder that is closed to others, as root's
    home is. Nothing where an ordinary user runs the tests. A limit of processes counts all that its user has, so a test
    of one takes a ``user`` of its own.
    """
    if os.geteuid() != 0:
        return []
    steps = [line for folder, inner in _closed().items() for line in _opening(folder, inner)]
    become = f'exec setpriv --reuid={user} --regid={user} --clear-groups "$@"'
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*steps, become]), "sh"]


def _closed() -> dict[Path, set[Path]]:
    """Return the folders on the way to the interpreter that others may not enter, and what is needed in each."""
    needed = {Path(each).resolve() for each in (sys.executable, sys.prefix, sys.base_prefix, *sys.path) if each}
    closed: dict[Path, set[Path]] = {}
    for path in needed:
        way = [*reversed(path.parents), path]
        for folder, inner in itertools.pairwise(way):
            if folder.is_dir() and not folder.stat().st_mode & 0o001:
                closed.setdefault(folder, set()).add(inner)
                break
    return closed


def _opening(folder: Path, inner: set[Path]) -> list[str]:
    """Return shell lines that put an open folder over a closed one, with what is needed of it in its place."""
    lines = ["mount -t tmpfs -o mode=755 aside /mnt"]
    for number, each in enumerate(sorted(inner)):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(str(each))} /mnt/{number}"]
    lines.append(f"mount -t tmpfs -o mode=755 open {shlex.quote(str(folder))}")
    for number, each in enumerate(sorted(inner)):
        lines += [f"mkdir {shlex.quote(str(each))}", f"mount --bind /mnt/{number} {shlex.quote(str(each))}"]
    return lines
