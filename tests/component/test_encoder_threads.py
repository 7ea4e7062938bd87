"""The threads of matrix products: there before the first event, so that a lack of threads later ends no process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ordinary

USER = 64_023
"""The limit is one of all processes that a user has, so no other test has this one."""

# A stage encodes, as in a service, and from its first item on the user may start no thread.
PROGRAM = """
import os
import resource
import sys
import threading

import numpy as np

from streamer.encoders.loading import load_encoder
from streamer.health import Health
from streamer.metrics import Metrics
from streamer.shortages import Shortages
from streamer.stages import Stage

threads, warm = int(sys.argv[1]), sys.argv[2] == "warm"
encoder = load_encoder("demo", dtype="float32", threads=threads)
frame = encoder.prepare(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
metrics, done = Metrics(), threading.Event()

def work(batch):
    for size in batch:
        images = encoder.encode_images([frame] * size)
        texts = encoder.encode_texts([" ".join(["a red ball"] * (1 + n)) for n in range(size)])
        print(images.shape[0], texts.shape[0], flush=True)
    done.set()

def failed(item, error):
    print(repr(error), flush=True)
    done.set()

health = Health(metrics)
stage = Stage("encode", work, failed=failed, metrics=metrics, health=health, shortages=Shortages(metrics, health),
              batch_limit=9, **({"begin": encoder.warm_up} if warm else {}))
resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
try:
    threading.Thread(target=int).start()
    print("a thread was started")
except RuntimeError as error:
    print(error, flush=True)
stage.put_all([1, 8])
done.wait()
sys.stdout.flush()
os._exit(0)  # as a service ends: some library's thread cannot be ended in order where none can be started
"""


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as an ordinary user: root is held to no limit of processes."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "HOME": "/"}
    command = [*ordinary.becoming(USER), sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("threads", ["2", "3"])
def test_a_stage_that_is_warm_encodes_where_no_thread_can_be_started(threads: str) -> None:
    done = ran(threads, "warm")
    said = done.stdout.splitlines()[-3:]  # after what is logged
    assert (done.returncode, said) == (0, ["can't start new thread", "1 1", "8 8"]), done.stderr


def test_one_that_is_not_is_ended_by_openmp() -> None:
    """So it is the warm-up, in the stage's own thread, that keeps the process alive."""
    done = ran("2", "cold")
    assert done.returncode != 0
    assert "libgomp: Thread creation failed" in done.stderr


LOADED = """
import resource
from streamer.encoders.loading import load_encoder
from streamer.machine import MachineError
import torch

resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
try:
    load_encoder("demo", dtype="float32", threads=2)
except MachineError as lack:
    print(lack)
"""


def test_a_model_for_which_there_are_no_threads_is_an_error_that_says_so() -> None:
    assert ordinary.run("-c", LOADED, as_nobody=True).splitlines()[-1] == "processes: can't start new thread"
