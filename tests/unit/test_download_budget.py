"""The byte budget of downloads: what exceeds it waits and is fetched later; nothing fails and nothing hangs."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from streamer.events import Reason
from streamer.machine import MachineError
from streamer.settings import SettingsError, load
from streamer.video import ClipError
from streamer.video.fetching.downloads import Budget, Claim, Folder, NoRoomError
from streamer.video.fetching.fetcher import Fetcher
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
UNKNOWN, GREATER, SHORT = "unknown", "greater", "short"


class Source:
    """Serves /NAME/BYTES, with ways of telling the size, and notes the most bytes on disk at any time."""

    def __init__(self, temporary: Path) -> None:
        source = self
        self.asked: Counter[str] = Counter()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, name, size = self.path.split("/")
                source.asked[self.path] += 1
                self.send_response(200)
                if not name.startswith(UNKNOWN):
                    self.send_header("Content-Length", size)
                self.end_headers()
                self.wfile.write(bytes(int(size)))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._temporary = temporary
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def fetcher(self, *, most: int, budget: int) -> Fetcher:
        return Fetcher(
            [self.origin, self.origin.replace("127.0.0.1", "localhost")],
            allowed_networks=["127.0.0.0/8", "::1/128"],
            max_bytes=most,
            timeout=20,
            download_bytes=budget,
        )

    def stored(self) -> int:
        return int(subprocess.run(["du", "-sb", self._temporary], capture_output=True, check=True).stdout.split()[0])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = Source(tmp_path)
    yield made
    made.close()


@contextmanager
def held(fetcher: Fetcher, uri: str) -> Iterator[threading.Event]:
    """Fetch in another thread and keep the file until the end of the block; the event is set once it is there."""
    there, over = threading.Event(), threading.Event()

    def keep() -> None:
        with fetcher.fetch(uri):
            there.set()
            over.wait(30)

    thread = threading.Thread(target=keep)
    thread.start()
    yield there
    over.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["known", UNKNOWN])
def test_a_download_waits_while_the_budget_is_used_up_and_is_then_fetched(source: Source, how: str) -> None:
    fetcher = source.fetcher(most=2 * MIB, budget=4 * MIB)
    other = source.origin.replace("127.0.0.1", "localhost")
    with ThreadPoolExecutor(1) as threads:
        with (
            held(fetcher, f"{source.origin}/known/{2 * MIB}") as first,
            held(fetcher, f"{other}/known/{MIB}") as second,
        ):
            assert first.wait(20)
            assert second.wait(20)
            third = threads.submit(size_of, fetcher, f"{source.origin}/{how}/{2 * MIB - 1}")
            wait_until(lambda: len(fetcher._budget._waiting) == 1)
            assert source.stored() < 4 * MIB
            assert fetcher._budget.taken == 3 * MIB  # what waits holds nothing
        assert third.result(20) == 2 * MIB - 1
    assert source.asked[f"/{how}/{2 * MIB - 1}"] == 2
    assert fetcher._budget.taken == 0


def size_of(fetcher: Fetcher, uri: str) -> int:
    with fetcher.fetch(uri) as path:
        return path.stat().st_size


def test_many_downloads_of_all_kinds_get_through_a_budget_of_one_file(source: Source) -> None:
    fetcher = source.fetcher(most=2 * MIB, budget=2 * MIB)
    draw = random.Random(1)  # noqa: S311 - reproducible, not secret
    sizes = [draw.choice((1, MIB // 3, MIB, 2 * MIB)) for _ in range(40)]
    most = 0

    def fetch(number: int) -> int:
        nonlocal most
        how = UNKNOWN if number % 3 == 0 else "known"
        with fetcher.fetch(f"{source.origin}/{how}{number}/{sizes[number]}") as path:
            most = max(most, fetcher._budget.taken)
            return path.stat().st_size

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(fetch, range(len(sizes)), timeout=60)) == sizes
    assert fetcher._budget.taken == 0
    assert most <= 2 * MIB


def test_a_file_over_the_limit_is_refused_and_does_not_wait(source: Source) -> None:
    fetcher = source.fetcher(most=MIB, budget=MIB)
    with held(fetcher, f"{source.origin}/known/{MIB}") as there:
        assert there.wait(20)
        with pytest.raises(ClipError) as caught, fetcher.fetch(f"{source.origin}/known/{2 * MIB}"):
            pass
        assert caught.value.reason == Reason.CLIP_TOO_LARGE


def test_a_budget_for_less_than_one_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="download_bytes: must be at least max_clip_bytes"):
        load({"max_clip_bytes": 2 * MIB, "download_bytes": MIB})
    with pytest.raises(ValueError, match="budget"):
        Budget(MIB, 2 * MIB)


def waiting(claim: Claim, size: int) -> threading.Thread:
    thread = threading.Thread(target=claim.wait, args=(size,), daemon=True)
    thread.start()
    wait_until(lambda: size in {claim.wanted, claim.size})
    return thread


def test_one_source_gets_half_of_the_budget_and_does_not_keep_others_waiting() -> None:
    budget = Budget(100, 10)
    slow = [Claim(budget, "slow") for _ in range(6)]
    for claim in slow[:5]:
        claim.reach(10)
    with pytest.raises(NoRoomError):
        slow[5].reach(10)
    thread = waiting(slow[5], 10)
    Claim(budget, "other").reach(10)  # though another one of the slow source waits
    slow[0].keep(0)
    thread.join(20)
    assert (slow[5].size, budget.taken) == (10, 60)


def test_a_large_file_is_not_passed_by_small_ones_for_ever() -> None:
    budget = Budget(20, 10)
    first = [Claim(budget, origin) for origin in ("a", "b")]
    for claim in first:
        claim.reach(10)
    large = Claim(budget, "c")
    thread = waiting(large, 10)
    first[0].keep(4)
    with pytest.raises(NoRoomError):
        Claim(budget, "d").reach(5)  # there are 6, but it is the large one's turn
    first[1].keep(6)
    thread.join(20)
    assert large.size == 10


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    program = (
        "from streamer.video.fetching.downloads import Folder\n"
        f"with Folder({str(tmp_path)!r}).file() as (path, descriptor):\n"
        "    print(path, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    (tmp_path / "streamer-downloads-link").symlink_to(tmp_path.parent)
    with Folder(str(tmp_path)).file() as (own, _):
        assert (tmp_path / name).exists()
        process.kill()
        process.communicate()
        Folder(str(tmp_path))
        assert not (tmp_path / name).parent.exists()
        assert own.exists()
    assert tmp_path.exists()


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with folder.file() as (path, _):
        pass
    path.parent.rmdir()
    with folder.file() as (path, _):
        assert path.stat().st_size == 0


def test_a_file_that_cannot_be_removed_costs_its_download_nothing_and_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that has become read-only because of an error of its disk."""

    def unlink(_: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    folder = Folder(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        with folder.file() as (path, _):
            pass
    assert path.exists()
    with folder.file() as (other, _):
        assert not path.exists()
    assert not other.exists()


def test_the_temporary_folder_that_was_chosen_is_waited_for_and_no_other_is_used(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "not mounted yet"
    monkeypatch.setenv("TMPDIR", str(chosen))
    fetcher = source.fetcher(most=MIB, budget=MIB)
    with pytest.raises(MachineError, match="No such file or directory"):
        size_of(fetcher, f"{source.origin}/known/1")
    chosen.mkdir()
    assert size_of(fetcher, f"{source.origin}/known/1") == 1
    assert [path.name for path in chosen.iterdir()]


def test_a_temporary_folder_that_is_lacking_is_waited_for(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    with monkeypatch.context() as patched:
        patched.delenv("TMPDIR", raising=False)
        patched.setattr(tempfile, "gettempdir", gettempdir)
        fetcher = source.fetcher(most=MIB, budget=MIB)
        with pytest.raises(MachineError, match="No usable temporary directory"):
            size_of(fetcher, f"{source.origin}/known/1")
    assert size_of(fetcher, f"{source.origin}/known/1") == 1
