"""A process as an init, which needs the right to a PID namespace, and as a child that ends with its parent."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
_START = """
import os, signal, subprocess, sys, time
from streamer.process import leave_process_1
leave_process_1()
"""
_ORPHANS = """
assert os.getpid() != 1 and os.getppid() == 1
# Each starts a child that outlives it.
for _ in range(20):
    subprocess.run(["sh", "-c", "sleep 0.05 &"], check=True)
while sum(name.isdigit() for name in os.listdir("/proc")) > 2:
    time.sleep(0.01)
print("only two processes are left", flush=True)
sys.exit(7)
"""
_STOPPABLE = """
def stop(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    tried = subprocess.run([*_IN_A_NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no PID namespace: {tried.stderr.strip()}")
    command = [*_IN_A_NAMESPACE, sys.executable, "-c", _START + code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_left_to_process_1_is_waited_for() -> None:
    with running(_ORPHANS) as process:
        told, _ = process.communicate(timeout=60)
        assert (told, process.returncode) == ("only two processes are left\n", 7)


def test_signals_are_passed_on_once_and_the_exit_code_is_the_childs() -> None:
    with running(_STOPPABLE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        inside = subprocess.run(
            ["pgrep", "--parent", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["kill", "-TERM", *inside], check=True)
        assert process.stdout.read() == "SIGTERM\n"
        assert process.wait(60) == 5


def test_a_child_that_is_killed_ends_it_as_a_shell_says_it_and_in_one_line() -> None:
    with running("os.kill(os.getpid(), signal.SIGKILL)") as process:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 128 + 9
        assert told.startswith("streamer: killed (SIGKILL): ")
        assert told.count("\n") == 1


def test_elsewhere_nothing_is_forked() -> None:
    code = "import os; before = os.getpid()\nfrom streamer.process import leave_process_1 as leave\nleave()\n"
    subprocess.run([sys.executable, "-c", f"{code}assert os.getpid() == before"], check=True)


_PARENT = """
import sys, time
from streamer.process import start_ending_with_parent
start_ending_with_parent([sys.executable, "-c", "print('started', flush=True); import time; time.sleep(600)"])
time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        assert parent.stdout.read() == ""  # whose end comes when the last process that could write to it has ended
