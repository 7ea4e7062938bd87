"""What a file that has taken over its decoder would try, each attempt in a decoder of its own.

``main``, with a folder to work in, prints as JSON what came of each attempt in a confined decoder, in a process
under Landlock alone, and in a plain one: ``done``, or the name of the error.
The number of an attempt is told to the decoder by the width of the clip's frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

OUTCOME_BYTES = 32
_SMALLEST_WIDTH = 64
_HEIGHT = 96
_LIBC = ctypes.CDLL(None, use_errno=True)
_RLIMIT_CORE = 4
_X86 = os.uname().machine == "x86_64"


@dataclass(frozen=True)
class Target:
    """Whom and what the attempts are at: the service's process, a file of its store, a free name, a listening port."""

    service: int
    store: str
    new: str
    port: int


def _call(x86: int, arm: int, *arguments: Any) -> int:
    result: int = _LIBC.syscall(x86 if _X86 else arm, *[_long(each) for each in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), "raw call")
    return result


def _long(value: Any) -> Any:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _read(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        file.read(64)


def _map_store(target: Target) -> None:
    with open(target.store, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:  # noqa: PTH123
        mapped[0]


def _tcp(target: Target) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect(("127.0.0.1", target.port))


def _udp(target: Target) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", target.port))


def _unix(_: Target) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0streamer-attempt-{os.getpid()}")


def _fork(_: Target) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _spawn(_: Target) -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def _execute_memory(_: Target) -> None:
    descriptor = os.memfd_create("program")
    os.write(descriptor, Path("/bin/true").read_bytes())
    empty = (ctypes.c_char_p * 2)(b"true", None)
    _call(322, 281, descriptor, b"", empty, (ctypes.c_char_p * 1)(None), 0x1000)


def _thread_of_a_namespace(_: Target) -> None:
    # CLONE_NEWUTS among a thread's flags, which libc never sets. Where it is let through, it is without privilege EPERM
    # too; so it is only asked for by root.
    _call(56, 220, 0x3D0F00 | 0x04000000, 0, 0, 0, 0)


def _map_code(_: Target) -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


def _make_code(_: Target) -> None:
    page = mmap.mmap(-1, 4096)
    where = ctypes.addressof(ctypes.c_char.from_buffer(page))
    _call(10, 226, where, 4096, 5)


def _send_descriptor(_: Target) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [0])


def _own_signals(target: Target) -> None:
    fcntl.fcntl(0, fcntl.F_SETOWN, target.service)


def _limits_of_the_service(target: Target) -> None:
    _call(302, 261, target.service, _RLIMIT_CORE, 0, ctypes.create_string_buffer(16))


def _limit_itself(_: Target) -> None:
    _call(302, 261, 0, _RLIMIT_CORE, struct.pack("QQ", 0, 0), 0)


def _read_memory(_: Target) -> None:
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    _call(310, 270, os.getpid(), vector, 1, vector, 1, 0)


def _become_traced(_: Target) -> None:
    _call(101, 117, 0, 0, 0, 0)  # PTRACE_TRACEME


ATTEMPTS: dict[str, Callable[[Target], object]] = {
    "read_environment_of_the_service": lambda target: _read(f"/proc/{target.service}/environ"),
    "open_memory_of_the_service": lambda target: os.close(os.open(f"/proc/{target.service}/mem", os.O_RDWR)),
    "open_descriptor_of_the_service": lambda target: os.listdir(f"/proc/{target.service}/fd"),  # noqa: PTH208
    "open_by_path": lambda _: _read("/etc/passwd"),
    "open_itself_by_path": lambda _: _read("/proc/self/status"),
    "stat_by_path": lambda _: os.stat("/etc/passwd"),  # noqa: PTH116
    "list_a_folder": lambda _: os.listdir("/etc"),  # noqa: PTH208
    "make_a_file": lambda target: os.close(os.open(target.new, os.O_CREAT | os.O_WRONLY)),
    "change_a_store_file": lambda target: os.close(os.open(target.store, os.O_RDWR)),
    "link_a_store_file": lambda target: os.link(target.store, target.new + ".link"),
    "rename_a_store_file": lambda target: os.rename(target.store, target.store),  # noqa: PTH104
    "map_a_store_file": _map_store,
    "change_folder": lambda _: os.chdir("/"),
    "tcp": _tcp,
    "udp": _udp,
    "unix_socket": _unix,
    "socket_pair": lambda _: socket.socketpair(),
    "send_a_descriptor": _send_descriptor,
    "fork": _fork,
    "spawn": _spawn,
    "exec": lambda _: os.execv("/bin/true", ["true"]),  # noqa: S606
    "exec_memory": _execute_memory,
    "memfd_create": lambda _: os.memfd_create("program"),
    "clone_into_a_namespace": _thread_of_a_namespace,
    "unshare": lambda _: _call(272, 97, 0x10000000),
    "new_session": lambda _: os.setsid(),
    "kill_the_service": lambda target: os.kill(target.service, 0),
    "kill_all": lambda _: os.kill(-os.getpgid(0), 0),
    "kill_thread_of_the_service": lambda target: _call(234, 131, target.service, target.service, 0),
    "pidfd_of_the_service": lambda target: os.pidfd_open(target.service),
    "be_traced": _become_traced,
    "read_memory_by_process_id": _read_memory,
    "io_uring": lambda _: _call(425, 425, 4, ctypes.create_string_buffer(120)),
    "map_code": _map_code,
    "make_code_of_data": _make_code,
    "owner_of_signals": _own_signals,
    "limits_of_the_service": _limits_of_the_service,
    "own_limits": _limit_itself,
    "lower_the_service_s_priority": lambda target: os.setpriority(os.PRIO_PROCESS, target.service, 19),
    "dump_again": lambda _: _checked_prctl(4, 1),
    "outlive_the_template": lambda _: _checked_prctl(1, 0),
    "ioctl": lambda _: fcntl.ioctl(0, 0x5451),  # FIOCLEX
    "perf_event_open": lambda _: _call(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0),
    "bpf": lambda _: _call(321, 280, 0, ctypes.create_string_buffer(128), 128),
    "add_key": lambda _: _call(248, 217, b"user", b"attempt", b"x", 1, -2),
    "userfaultfd": lambda _: _call(323, 282, 1),
    "system_v_memory": lambda _: _call(29, 194, 0, 4096, 0o1600),
}

NEEDS_PRIVILEGE = frozenset({"clone_into_a_namespace", "perf_event_open", "bpf", "add_key", "userfaultfd", "io_uring"})
"""What a plain process may be refused too, by its lack of privilege or how the kernel was built or set up."""


LANDLOCK_DENIES = {
    1: ("open_by_path", "list_a_folder", "make_a_file", "change_a_store_file", "map_a_store_file", "link_a_store_file",
        "spawn", "exec"),
    4: ("tcp",),
    6: ("kill_the_service",),
}  # fmt: skip
"""From which ABI it denies which of them, without the other layer."""


def _checked_prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), "prctl")


def outcome(name: str, target: Target) -> str:
    try:
        ATTEMPTS[name](target)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "done"


@dataclass(frozen=True)
class Try:
    """Makes the attempt of the number that a frame's width tells; the rehearsal's frames are lower, and tell none."""

    target: Target

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width, _ = frame.shape
        told = "nothing"
        if height == _HEIGHT:
            told = outcome(list(ATTEMPTS)[width - _SMALLEST_WIDTH], self.target)
        return np.frombuffer(told.encode().ljust(OUTCOME_BYTES), dtype=np.uint8)


def clip_of(name: str, folder: Path) -> Path:
    """Write the clip whose decoder tries this."""
    width = _SMALLEST_WIDTH + list(ATTEMPTS).index(name)
    path = folder / f"{name}.y4m"
    path.write_bytes(f"YUV4MPEG2 W{width} H{_HEIGHT} F1:1 C444\nFRAME\n".encode() + bytes(3 * width * _HEIGHT))
    return path


def in_a_process(name: str, target: Target, confine: Callable[[], None] = lambda: None) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            confine()
            os.write(writing, outcome(name, target).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        words = told.read().decode()
    _, status = os.waitpid(child, 0)
    Path(target.new).unlink(missing_ok=True)
    Path(target.new + ".link").unlink(missing_ok=True)
    return words or ("done" if status == 0 else f"status {status}")  # it has become another program


def main() -> None:
    # What the decoders need not import.
    from streamer.video.errors import ClipError  # noqa: PLC0415
    from streamer.video.isolation.confinement import confine_by_landlock  # noqa: PLC0415
    from streamer.video.isolation.pool import DecodePool  # noqa: PLC0415
    from streamer.video.sampling.sample import Sampling  # noqa: PLC0415

    folder = Path(sys.argv[1])
    store = folder / "data.mdb"
    store.write_bytes(bytes(4096))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: [listener.accept() for _ in iter(int, 1)], daemon=True).start()
        target = Target(os.getpid(), str(store), str(folder / "new"), listener.getsockname()[1])
        plain = {name: in_a_process(name, target) for name in ATTEMPTS}
        landlocked = {
            name: in_a_process(name, target, confine_by_landlock)
            for names in LANDLOCK_DENIES.values()
            for name in names
        }
        pool = DecodePool(Sampling(1, 1), Try(target), workers=1, timeout=60, memory=1 << 30)
        confined = {}
        for name in ATTEMPTS:
            try:
                with pool.sampled(clip_of(name, folder)) as clip:
                    confined[name] = clip.frames[0].tobytes().decode().strip()
            except ClipError as error:
                confined[name] = error.detail
        json.dump(
            {"layers": pool.layers.mode, "plain": plain, "landlock": landlocked, "confined": confined}, sys.stdout
        )
        pool.close()
