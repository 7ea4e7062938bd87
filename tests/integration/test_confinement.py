"""What a decoder cannot do whatever its file makes of it, as root and as an ordinary user, an attempt at a time."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from streamer.video.isolation.confinement import landlock_abi
from tests.support import attempts, ordinary
from tests.support.driver import Bus, Service, environment
from tests.support.processes import children
from tests.support.scarcity import asked
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

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


LOOK = """
import ctypes
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)

def tried(attempt, pid):
    try:
        attempt(pid)
    except OSError as error:
        return type(error).__name__
    return "done"

def call(number, *arguments):
    if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "raw call")

def take_a_descriptor(pid):
    call(438, os.pidfd_open(pid), 0, 0)  # pidfd_getfd, the same number everywhere

def read_by_id(pid):
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")

for pid in map(int, sys.argv[1:]):
    print(*(tried(attempt, pid) for attempt in (
        lambda pid: open(f"/proc/{pid}/environ", "rb").read(1),
        lambda pid: os.listdir(f"/proc/{pid}/fd"),
        lambda pid: os.readlink(f"/proc/{pid}/exe"),
        lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
        take_a_descriptor,
        read_by_id,
    )))
"""


@pytest.mark.parametrize("command", ["embed", "rerank"])
def test_services_and_their_helpers_show_nothing_to_others_of_their_user(tmp_path: Path, command: str) -> None:
    """The helpers: the process that holds the port of metrics, and the one from which decoders are forked."""
    with ordinary.open_folder() as folder:
        variables = environment(Bus("127.0.0.1:1", ""), folder / "store", [folder], HOME=str(folder))
        before = ordinary.becoming()
        with Service(command, variables, tmp_path, before=before) as service:
            wait_until(lambda: asked(service, "/livez")[0] == http.client.OK, "/livez", seconds=150, alive=[service])
            helpers = 2 if command == "embed" else 1
            wait_until(lambda: len(children(service.pid)) >= helpers, "helpers", seconds=150, alive=[service])
            wait_until(lambda: is_hidden(children(service.pid)), "all to be hidden", seconds=60, alive=[service])
            for line in looked(service.pid, *children(service.pid)):
                assert line.split() == ["PermissionError"] * 6
    with subprocess.Popen([*before, "sleep", "600"]) as other:
        wait_until(lambda: looked(other.pid)[0].split()[:4] == ["done"] * 4, "a process that hides nothing", seconds=60)
        other.kill()


def looked(*pids: int) -> list[str]:
    return ordinary.run("-c", LOOK, *map(str, pids), as_nobody=True).splitlines()


def is_hidden(pids: list[int]) -> bool:
    """Tell whether helpers that have just been started have come to hide what they have."""
    return all(line.split()[0] == "PermissionError" for line in looked(*pids))
