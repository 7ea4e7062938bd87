"""A process under a false time sees each shift at once, and its waits take as long as ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.chaos.service_faults import FalseTime, c_compiler

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 60.0
"""After which a wait that takes until the false deadline is ended, with its process."""

LOOKS = """
import sys, time, threading
from confluent_kafka import Consumer
consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
for _ in sys.stdin:
    began = time.monotonic()
    time.sleep(0.05); threading.Event().wait(0.05); consumer.poll(0.05)
    print(time.time(), time.monotonic() - began, flush=True)
"""


@pytest.mark.skipif(c_compiler() is None, reason="no C compiler")
def test_the_clock_of_a_process_jumps_and_its_waits_go_on(tmp_path: Path) -> None:
    false_time = FalseTime(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", LOOKS],
        env={**os.environ, **false_time.variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    times = []
    guard = threading.Timer(_PATIENCE_S, process.kill)
    guard.start()
    with process:
        for shift in (0, 7_200, -7_200, 0.5):
            false_time.shift(shift)
            process.stdin.write("\n")
            process.stdin.flush()
            at, took = map(float, process.stdout.readline().split())
            assert took >= 0.15
            times.append(at - shift)
        process.stdin.close()
    guard.cancel()
    assert process.returncode == 0
    assert times == sorted(times)
    assert times[-1] - times[0] < 3_600
