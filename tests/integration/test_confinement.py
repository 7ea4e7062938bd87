"""What a decoder cannot do whatever its file makes of it, as root and as an ordinary user, an attempt at a time."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import pytest

from streamer.video.isolation.confinement import landlock_abi
from tests.support import attempts, ordinary

PROGRAM = "from tests.support.attempts import main; main()"

USERS = [
    pytest.param(True, id="nobody"),
    pytest.param(False, id="root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="the tests are not run as root")),
]


@cache
def outcomes(*, as_nobody: bool) -> dict[str, Any]:
    """Make all attempts at once: what came of each, by kind of process."""
    with ordinary.open_folder() as folder:
        told: dict[str, Any] = json.loads(ordinary.run("-c", PROGRAM, folder, as_nobody=as_nobody))
    return told


@pytest.mark.parametrize("as_nobody", USERS)
@pytest.mark.parametrize("name", attempts.ATTEMPTS)
def test_a_decoder_that_a_file_has_taken_over_cannot(name: str, as_nobody: bool) -> None:
    told = outcomes(as_nobody=as_nobody)
    if name not in attempts.NEEDS_PRIVILEGE:
        assert told["plain"][name] == "done", "a process that is not confined can"
    assert told["confined"][name] == "EPERM"


@pytest.mark.parametrize("as_nobody", USERS)
@pytest.mark.parametrize(("abi", "names"), attempts.LANDLOCK_DENIES.items())
def test_landlock_denies_files_tcp_and_signals_without_the_filter(
    abi: int, names: tuple[str, ...], as_nobody: bool
) -> None:
    if landlock_abi() < abi:
        pytest.skip(f"the kernel's Landlock is ABI {landlock_abi()}")
    told = outcomes(as_nobody=as_nobody)
    assert {name: told["landlock"][name] for name in names} == {
        name: "EPERM" if name == "kill_the_service" else "EACCES" for name in names
    }


HIDDEN = """
import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from streamer.video.fetching.fetcher import Fetcher
from streamer.process import hide_memory
from streamer.video.isolation.pool import decoder_of_one
from streamer.video.sampling.sample import Sampling
from tests.support.prepares import digest

folder = Path(sys.argv[1])
path = folder / "clip.y4m"
path.write_bytes(b"YUV4MPEG2 W64 H64 F1:1 C444\\nFRAME\\n" + bytes(3 * 64 * 64))

def look():
    read = "import sys; print(len(open(sys.argv[1], 'rb').read()) > 0)"
    for name in ("environ", "mem", "maps"):
        done = subprocess.run([sys.executable, "-c", read.replace(".read()", ".read(1)") if name == "mem" else read,
                               f"/proc/{os.getpid()}/{name}"], capture_output=True, text=True)
        print(name, done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(":")[0])

look()
hide_memory()
look()
fetcher = Fetcher([folder.as_uri()], max_bytes=1 << 20, timeout=5)
with decoder_of_one(Sampling(1, 1), digest) as decoder:
    with fetcher.fetch(path.as_uri()) as fetched, decoder.sampled(fetched) as clip:
        print(len(clip.frames))
registry = CollectorRegistry()
ProcessCollector(registry=registry)
print(registry.get_sample_value("process_open_fds") > 3, registry.get_sample_value("process_resident_memory_bytes") > 0)
"""


def test_a_service_that_hides_its_memory_still_fetches_decodes_and_counts() -> None:
    with ordinary.open_folder() as folder:
        told = ordinary.run("-c", HIDDEN, folder, as_nobody=True).splitlines()
    assert told[0] == "environ True", "others of its user could read it before"
    assert told[3:6] == ["environ PermissionError", "mem PermissionError", "maps PermissionError"]
    assert told[6:] == ["1", "True True"]
