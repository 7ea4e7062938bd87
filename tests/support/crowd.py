"""Clients of the metrics port that nobody wants, by the thousand.

``python -m tests.support.crowd PORT KIND COUNT`` prints a line when nine of ten have connected once, since the kernel
lets some of a crowd wait for seconds, and goes on until its standard input is closed; then it prints how often they
have connected. A client that is disconnected comes back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_BYTE_SECONDS = 0.5
_HOLD_SECONDS = 5.0
_COME_SECONDS = 180.0
_CHUNK = b"x: " + b"y" * 1000 + b"\r\n"
_SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
_PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

Loop = asyncio.AbstractEventLoop


async def _silent(loop: Loop, client: socket.socket) -> None:
    await loop.sock_recv(client, 1)


async def _slow(loop: Loop, client: socket.socket) -> None:
    await loop.sock_sendall(client, b"GET /livez HTTP/1.1\r\n")
    while True:
        await loop.sock_sendall(client, b"x")
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(loop.sock_recv(client, 1), _BYTE_SECONDS):
                return


async def _endless(loop: Loop, client: socket.socket) -> None:
    await loop.sock_sendall(client, b"GET /livez HTTP/1.1\r\n")
    while True:
        await loop.sock_sendall(client, _CHUNK)
        await asyncio.sleep(0)  # what can be sent at once lets nobody else have a turn


async def _deaf(loop: Loop, client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await loop.sock_sendall(client, _SCRAPE)
    await asyncio.sleep(_HOLD_SECONDS)


async def _scraping(loop: Loop, client: socket.socket) -> None:
    await _ask(loop, client, _SCRAPE)


async def _probing(loop: Loop, client: socket.socket) -> None:
    await _ask(loop, client, _PROBE)


async def _ask(loop: Loop, client: socket.socket, request: bytes) -> None:
    await loop.sock_sendall(client, request)
    while await loop.sock_recv(client, 1 << 16):
        pass


KINDS: dict[str, Callable[[Loop, socket.socket], Awaitable[None]]] = {
    "silent": _silent,
    "slow": _slow,
    "endless": _endless,
    "deaf": _deaf,
    "scraping": _scraping,
    "probing": _probing,
}


async def _client(port: int, kind: str, came: Callable[[int], Any]) -> None:
    loop = asyncio.get_running_loop()
    times = 0
    while True:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            times += 1
            came(times)
            await KINDS[kind](loop, client)
        await asyncio.sleep(0)


async def _crowd(port: int, kind: str, count: int) -> None:
    most_came = asyncio.Event()
    missing, connections = count, 0

    def came(times: int) -> None:
        nonlocal missing, connections
        connections += 1
        missing -= times == 1
        if missing <= count // 10:
            most_came.set()

    clients = {asyncio.create_task(_client(port, kind, came)) for _ in range(count)}
    await most_came.wait()
    print("most have come", flush=True)  # noqa: T201 - the parent waits for it
    before = connections
    await asyncio.to_thread(sys.stdin.read)
    print(connections - before, flush=True)  # noqa: T201 - the parent reads it
    assert len(clients) == count
    os._exit(0)


class Crowd:
    """A crowd that is there."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.connections = 0
        """How often its clients have connected during the block, known at its end."""


@contextmanager
def crowd(port: int, kind: str, count: int, *, politely: bool = False) -> Iterator[Crowd]:
    """Have clients of a kind for the length of the block; most have connected once before it begins.

    ``politely``: the clients get only the processor time that nobody else on this machine wants, as if they had a
    machine of their own. What they make others do costs what it costs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.crowd", str(port), kind, str(count)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if politely:
                os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
            if not select.select([process.stdout], [], [], _COME_SECONDS)[0]:
                raise TimeoutError(f"{kind} clients did not come to port {port}")
            assert process.stdout.readline() == "most have come\n"
            there = Crowd(process.pid)
            yield there
            assert process.poll() is None
            process.stdin.close()
            there.connections = int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_crowd(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
