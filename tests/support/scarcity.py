"""What a machine can run short of under a running embedder, and what must hold meanwhile and afterwards.

Each shortage is a context manager: inside its block the resource is lacking. Uploads that come meanwhile must wait,
the service must say what it waits for, and all of them must be embedded once the block has ended.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import resource
import signal
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.driver import EMBEDDED, UPLOADED, Bus, Record, Service
from tests.support.footage import tiny_footage
from tests.support.load import Metrics
from tests.support.processes import children, limited
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Shortage = Callable[[Service], AbstractContextManager[None]]

_PADDING = 200_000
"""Bytes that make of each small clip a download that takes room."""


# -- sources -------------------------------------------------------------------------------------------------


class Clips(ThreadingHTTPServer):
    """Serves clips over HTTP, ``/N.mp4``, in pieces with a pause before each."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        """Write the clips into ``folder``, too."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths = [video.path for video in tiny_footage(folder)]
        for path in self.paths:
            path.write_bytes(path.read_bytes() + struct.pack(">I4s", 8 + _PADDING, b"free") + bytes(_PADDING))
        self.contents = [path.read_bytes() for path in self.paths]
        self.origin = f"http://127.0.0.1:{self.server_address[1]}/"
        self.pause = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that lack something hang up."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve for the length of the block."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Clips

    def do_GET(self) -> None:
        content = self.server.contents[int(self.path.strip("/").partition(".")[0]) % len(self.server.contents)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for first in range(0, len(content), 1 << 15):
            time.sleep(self.server.pause)
            self.wfile.write(content[first : first + (1 << 15)])

    def log_message(self, *_: object) -> None:
        pass


# -- shortages -----------------------------------------------------------------------------------------------


@contextmanager
def file_system(folder: Path, options: str = "size=20m") -> Iterator[None]:
    """Put a small file system of memory in the folder's place; it takes root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=1777", "small", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def full(folder: Path) -> Shortage:
    """Let no byte be left on the file system of ``folder``."""

    @contextmanager
    def shortage(_: Service) -> Iterator[None]:
        ballast = folder / "ballast"
        _fill(ballast)
        try:
            yield
        finally:
            ballast.unlink()

    return shortage


def full_again_and_again(folder: Path) -> Shortage:
    """Let the file system of ``folder`` be full for a moment, have room for a moment, and so on."""

    @contextmanager
    def shortage(_: Service) -> Iterator[None]:
        def change(ended: threading.Event) -> None:
            ballast = folder / "ballast"
            while not ended.is_set():
                _fill(ballast)
                ended.wait(0.2)
                ballast.unlink()
                ended.wait(0.05)

        with _meanwhile(change):
            yield

    return shortage


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


@contextmanager
def _meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``work`` in a thread; it is to end when its event is set."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def no_inodes(folder: Path) -> Shortage:
    """Let the file system of ``folder`` have room for bytes, but not for one more file."""

    @contextmanager
    def shortage(_: Service) -> Iterator[None]:
        made = []
        with suppress(OSError):
            for number in itertools.count():
                path = folder / f"ballast-{number}"
                path.touch()
                made.append(path)
        try:
            yield
        finally:
            for path in made:
                path.unlink()

    return shortage


def read_only(folder: Path) -> Shortage:
    """Let the file system of ``folder`` not be written."""

    @contextmanager
    def shortage(_: Service) -> Iterator[None]:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", folder], check=True)

    return shortage


@contextmanager
def few_descriptors(service: Service) -> Iterator[None]:
    """Let the service open hardly any descriptor more."""
    opened = {int(path.name) for path in Path(f"/proc/{service.pid}/fd").iterdir()}
    free = next(number for number in itertools.count() if number not in opened)
    with limited(service.pid, resource.RLIMIT_NOFILE, max(free, 8)):
        yield


@contextmanager
def few_processes(service: Service) -> Iterator[None]:
    """Let neither the service nor its template start a process or a thread; it takes a service that is not root's."""
    with (
        limited(service.pid, resource.RLIMIT_NPROC, 1),
        limited(template(service), resource.RLIMIT_NPROC, 1),
    ):
        yield


@contextmanager
def no_long_files(service: Service) -> Iterator[None]:
    """Let the service write no file: what it needs is there, but its own limit of a file's size is 0."""
    with limited(service.pid, resource.RLIMIT_FSIZE, 0):
        yield


@contextmanager
def dying_template(service: Service) -> Iterator[None]:
    """Kill the template of the decoders before the block, and each later one as it starts, as for lack of memory.

    No template lives for long enough to decode a clip: it starts for tenths of a second, and is looked for every
    thousandth. So it does not depend on how fast the machine decodes whether uploads meet the shortage.
    """

    def kill() -> None:
        with suppress(OSError, ValueError):
            os.kill(template(service), signal.SIGKILL)

    def kill_each(ended: threading.Event) -> None:
        while not ended.wait(0.001):
            kill()

    kill()
    with _meanwhile(kill_each):
        yield


def template(service: Service) -> int:
    """Return the id of the template of the service's decoders. Raises ValueError while there is none."""
    [found] = [pid for pid in children(service.pid) if b"isolation" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


# -- what must hold ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """How it went: seconds until /readyz named the shortage, and from its end until all uploads were embedded."""

    named_after: float
    named: str
    waited_out: int
    embedded_meanwhile: int
    embedded_after: float

    def __str__(self) -> str:
        return (
            f"named after {self.named_after:.1f} s ({self.named}), {self.embedded_meanwhile} embedded meanwhile, "
            f"put off {self.waited_out} times, all embedded {self.embedded_after:.1f} s after its end"
        )


def endured(
    service: Service,
    bus: Bus,
    shortage: Shortage,
    uploads: list[Record],
    *,
    hold: float,
    condition: str = "machine",
    lacking: str = "",
) -> Course:
    """Publish uploads while a resource is lacking for ``hold`` seconds; show that each is embedded afterwards.

    ``condition`` and ``lacking``: what /readyz must say meanwhile.
    """
    told: list[str] = []

    def is_named() -> bool:
        status, lines = asked(service, "/readyz")
        told[:] = [line for line in lines if line.startswith(f"{condition}:") and lacking in line]
        return status == http.client.SERVICE_UNAVAILABLE and bool(told)

    already, faults = len(bus.read(EMBEDDED)), _faults(service)
    with shortage(service):
        began = time.monotonic()
        bus.publish(UPLOADED, uploads)
        wait_until(is_named, f"/readyz to name {condition}: {lacking}", seconds=20, alive=[service])
        named_after, named = time.monotonic() - began, told[0]
        while time.monotonic() < began + hold:
            service.check_alive()
            assert asked(service, "/livez") == (http.client.OK, ["ok"])
            time.sleep(min(1.0, hold / 10))
        meanwhile = len(bus.read(EMBEDDED)) - already
    ended = time.monotonic()
    wait_until(
        lambda: len(bus.read(EMBEDDED)) >= already + len(uploads) or bus.read(f"{UPLOADED}.dlq"),
        "all to be embedded", seconds=120, pause=0.5, alive=[service],
    )  # fmt: skip
    took = time.monotonic() - ended
    assert [letter.header("dlq.reason") for letter in bus.read(f"{UPLOADED}.dlq")] == []
    ids = Counter(record.event["clip_id"] for record in bus.read(EMBEDDED)[:])
    assert {ids[record.event["clip_id"]] for record in uploads} == {1}
    wait_until(lambda: asked(service, "/readyz")[0] == http.client.OK, "to be ready again", alive=[service])
    return Course(named_after, named, int(_faults(service) - faults), meanwhile, took)


def _faults(service: Service) -> float:
    metrics = Metrics(service)
    return metrics.total("streamer_machine_faults_total") + metrics.total("streamer_retries_total", stage="store")


def asked(service: Service, path: str) -> tuple[int, list[str]]:
    """Return the status and the lines of an answer of the metrics port; 0 and nothing where there is none."""
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode().splitlines()
        except (OSError, http.client.HTTPException):
            return 0, []


def uploads_of(clips: Clips, count: int, name: str, *, only_web: bool = True) -> list[Record]:
    """Return so many uploads, over HTTP, or every other one as a file."""
    at = datetime.now(UTC).isoformat()
    return [
        Record.of(
            f"{name}-{number}",
            {
                "clip_id": f"{name}-{number}",
                "uri": f"{clips.origin}{number}.mp4"
                if only_web or number % 2
                else clips.paths[number % len(clips.paths)].as_uri(),
                "uploaded_at": at,
            },
        )
        for number in range(count)
    ]


def settings_of(clips: Clips, temporary: Path) -> dict[str, str]:
    """Return an embedder's settings: where the clips are, and a source's faults that are soon given up."""
    return {
        "STREAMER_ALLOWED_URIS": json.dumps([clips.origin, clips.paths[0].parent.as_uri()]),
        "STREAMER_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
        "STREAMER_FETCH_RETRY_TIMEOUT": "5",
        "STREAMER_MAX_CLIP_BYTES": str(1 << 20),
        "STREAMER_DOWNLOAD_BYTES": str(16 << 20),
        "TMPDIR": str(temporary),
    }
