"""What a fetched source is given as: a path that stays what it was checked to be, and that leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer.events import Reason
from streamer.machine import Lack, MachineError
from streamer.video import ClipError, Retry
from streamer.video.fetching.download import Sink
from streamer.video.fetching.downloads import Budget, Claim
from streamer.video.fetching.fetcher import Fetcher
from tests.support.odd_server import CLIP, LOOPBACK, OddServer, serving
from tests.support.processes import await_quiet_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_FOUND = (Reason.NOT_FOUND, Retry.NEVER)
REFUSED = (Reason.URI_REFUSED, Retry.NEVER)
FAILED = (Reason.FETCH_FAILED, Retry.NEVER)
FAILED_FOR_NOW = (Reason.FETCH_FAILED, Retry.FOR_A_WHILE)
TOO_LARGE = (Reason.CLIP_TOO_LARGE, Retry.NEVER)


def fetcher(*allowed: str, max_bytes: int = 200_000, timeout: float = 10.0) -> Fetcher:
    return Fetcher(allowed, allowed_networks=LOOPBACK, max_bytes=max_bytes, timeout=timeout)


def refusal(source: Fetcher, uri: str) -> tuple[Reason, Retry]:
    with pytest.raises(ClipError) as caught, source.fetch(uri) as path:
        pytest.fail(f"{uri} was fetched as {path}")
    assert str(caught.value) == caught.value.detail != ""
    return caught.value.reason, caught.value.retry


@pytest.fixture
def server() -> Iterator[OddServer]:
    with serving() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Allowed ``clips`` beside forbidden ``clips-secret``."""
    for name in ("clips", "clips-secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(CLIP)
    (tmp_path / "clips-secret" / "a.mp4").write_bytes(b"secret")
    return tmp_path


@pytest.mark.parametrize("prefix", ["file:", "file://", "file://localhost", "FILE:"])
@pytest.mark.parametrize("scheme", ["file:", "file://", "file://localhost"])
def test_a_file_is_read_where_it_is(folder: Path, prefix: str, scheme: str) -> None:
    with fetcher(f"{prefix}{folder}/clips").fetch(f"{scheme}{folder}/clips/a.mp4") as path:
        assert path.samefile(folder / "clips" / "a.mp4")
    assert not path.exists()
    assert (folder / "clips" / "a.mp4").exists()


def test_a_single_file_can_be_allowed(folder: Path) -> None:
    source = fetcher(f"file:{folder}/clips/a.mp4")
    with source.fetch(f"file:{folder}/clips/a.mp4") as path:
        assert path.read_bytes() == CLIP


def test_percent_encoding_and_spaces_name_the_same_file(folder: Path) -> None:
    odd = folder / "my clips" / "100% #1?::é.mp4"
    odd.parent.mkdir()
    odd.write_bytes(CLIP)
    for prefix in (f"file:{folder}/my clips", odd.parent.as_uri()):
        with fetcher(prefix).fetch(odd.as_uri().replace("::", "%3A%3A")) as path:
            assert path.samefile(odd)


def test_an_allowed_folder_may_itself_be_a_link_and_links_within_it_are_followed(folder: Path) -> None:
    (folder / "current").symlink_to(folder / "clips")
    (folder / "clips" / "link.mp4").symlink_to("a.mp4")
    with fetcher(f"file:{folder}/current").fetch(f"file:{folder}/current/link.mp4") as path:
        assert path.samefile(folder / "clips" / "a.mp4")


def test_another_process_opens_the_file_that_was_checked_although_its_name_leads_elsewhere_by_now(
    folder: Path,
) -> None:
    clip = folder / "clips" / "a.mp4"
    with fetcher(f"file:{folder}/clips").fetch(f"file:{clip}") as path:
        clip.unlink()
        clip.symlink_to(folder / "clips-secret" / "a.mp4")
        assert subprocess.run(["cat", path], capture_output=True, check=True).stdout == CLIP


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_that_is_put_between_the_check_and_the_opening_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    clip, real_open = folder / "clips" / "today" / "a.mp4", os.open
    opened: list[object] = []
    clip.parent.mkdir()
    clip.write_bytes(CLIP)

    def open_late(name: Path, flags: int, *more: int) -> int:
        if not opened:
            if swapped == "file":
                clip.unlink()
                clip.symlink_to(folder / "clips-secret" / "a.mp4")
            else:
                clip.parent.rename(folder / "aside")
                clip.parent.symlink_to(folder / "clips-secret")
        opened.append(flags)
        return real_open(name, flags, *more)

    source = fetcher(f"file:{folder}/clips")
    monkeypatch.setattr(os, "open", open_late)
    assert refusal(source, f"file:{clip}") == REFUSED
    assert opened == [os.O_PATH | os.O_CLOEXEC]


def test_a_fifo_that_is_put_between_the_check_and_the_opening_does_not_hang(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, real_open = folder / "clips" / "a.mp4", os.open

    def open_late(name: Path, flags: int, *more: int) -> int:
        clip.unlink(missing_ok=True)
        os.mkfifo(clip)
        return real_open(name, flags, *more)

    monkeypatch.setattr(os, "open", open_late)
    assert refusal(fetcher(f"file:{folder}/clips"), f"file:{clip}") == REFUSED


def test_a_link_that_flickers_never_gives_what_lies_outside(folder: Path) -> None:
    clip, stopped = folder / "clips" / "b.mp4", threading.Event()
    good, bad = folder / "clips" / "a.mp4", folder / "clips-secret" / "a.mp4"
    clip.symlink_to(good)

    def flicker() -> None:
        spare = folder / "spare"
        while not stopped.is_set():
            for target in (bad, good):
                spare.symlink_to(target)
                spare.rename(clip)

    thread = threading.Thread(target=flicker)
    thread.start()
    source, seen, refused = fetcher(f"file:{folder}/clips"), set(), set()
    try:
        for _ in range(3000):
            try:
                with source.fetch(f"file:{clip}") as path:
                    seen.add(path.read_bytes())
            except ClipError as error:
                refused.add(error.reason)
    finally:
        stopped.set()
        thread.join()
    assert seen == {CLIP}
    assert refused == {Reason.URI_REFUSED}


@pytest.mark.parametrize("name", ["absent.mp4", "a.mp4/below"])
def test_a_missing_file_is_not_found(folder: Path, name: str) -> None:
    assert refusal(fetcher(f"file:{folder}/clips"), f"file:{folder}/clips/{name}") == NOT_FOUND


def test_a_name_that_is_too_long_is_a_lasting_failure(folder: Path) -> None:
    assert refusal(fetcher(f"file:{folder}/clips"), f"file:{folder}/clips/{'x' * 300}") == FAILED


def test_a_file_of_somebody_else_is_a_lasting_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def denied(name: Path, flags: int, *more: int) -> int:  # tests may run as root, who may read everything
        if flags & os.O_PATH:
            return real_open(name, flags, *more)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refusal(fetcher(f"file:{folder}/clips"), f"file:{folder}/clips/a.mp4") == FAILED


def test_the_byte_limit_counts_for_files(folder: Path) -> None:
    with fetcher(f"file:{folder}", max_bytes=len(CLIP)).fetch(f"file:{folder}/clips/a.mp4"):
        pass
    uri = f"file:{folder}/clips/a.mp4"
    assert refusal(fetcher(f"file:{folder}", max_bytes=len(CLIP) - 1), uri) == TOO_LARGE


@pytest.mark.parametrize(
    ("networks", "words"), [(("10.0.0.0/33",), "'10.0.0.0/33' is not a network"), (("10.0.0.1/8",), "host bits set")]
)
def test_a_wrong_network_is_named_at_construction(networks: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fetcher(["file:/clips"], allowed_networks=networks, max_bytes=1, timeout=1)


def test_a_gs_prefix_without_gcsfs_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    # Another test may have loaded it.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(ValueError, match=r"cliprerank-streamer\[gs\]"):
        Fetcher(["gs://bucket/clips/"], max_bytes=1, timeout=1)


def test_a_download_is_a_named_file_that_ends_with_the_block(
    server: OddServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source, before = fetcher(f"{server.origin}/clips"), descriptors()
    with source.fetch(f"{server.origin}/clips/a.mp4") as path:
        [named] = files(tmp_path)  # du finds it, by which kubelet counts
        assert named.samefile(path)
        assert (named.stat().st_mode & 0o777, named.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert subprocess.run(["cat", path], capture_output=True, check=True).stdout == CLIP
    with pytest.raises(KeyError), source.fetch(f"{server.origin}/clips/a.mp4"):
        raise KeyError
    refusal(source, f"{server.origin}/clips/short")
    refusal(source, f"{server.origin}/clips/404")
    assert files(tmp_path) == []
    assert [left for left in descriptors() - before if left.startswith(str(tmp_path))] == [str(named.parent)]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def descriptors() -> set[str]:
    """Return what this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(str(entry.readlink()))
    return found


def test_a_query_belongs_to_the_source(server: OddServer) -> None:
    with fetcher(server.origin).fetch(f"{server.origin}/clips/signed.mp4?signature=1") as path:
        assert path.read_bytes() == CLIP
    assert server.asked == ["/clips/signed.mp4?signature=1"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        # Every write to /dev/full fails as on a full disk.
        (lambda **_: (os.open("/dev/full", os.O_RDWR), "/no/such/file"), "No space left on device"),
        (lambda **_: (os.open("/no/such/folder/a", os.O_RDWR), ""), "No such file or directory"),
    ],
)
def test_a_temporary_file_that_cannot_be_written_is_no_fault_of_the_source(
    server: OddServer, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., object], words: str
) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", trouble)
    uri = f"{server.origin}/clips/a.mp4"
    with pytest.raises(MachineError, match=words) as caught, fetcher(server.origin).fetch(uri):
        pytest.fail("there was room")
    assert caught.value.lack is Lack.DISK


class Broken(io.FileIO):
    """A file that cannot be written."""

    code = 0

    def write(self, _: object, /) -> int:
        raise OSError(self.code, os.strerror(self.code))

    def truncate(self, _: int | None = None, /) -> int:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ETIMEDOUT", "ECONNRESET"])
def test_whatever_keeps_a_download_from_being_written_is_no_fault_of_the_source(tmp_path: Path, code: str) -> None:
    """Also an error that a connection may have, too."""
    raw = Broken(tmp_path / "a", "w")
    raw.code = getattr(errno, code)
    sink = Sink(tmp_path / "a", raw, 1 << 30, Claim(Budget(1 << 30, 1 << 30), "a"))
    with pytest.raises(MachineError) as caught:
        sink.write(bytes(1 << 20))
    assert caught.value.lack is Lack.DISK
    with pytest.raises(MachineError):
        sink.restart()
    raw.close()


@pytest.mark.parametrize("path", ["stalling", "short", "drops_weak", "endless"])
def test_a_failed_download_writes_nothing_to_what_is_opened_after_it(
    server: OddServer, tmp_path: Path, path: str
) -> None:
    """Bytes that were not yet written when it failed would go to the next file with the same descriptor number."""
    source = fetcher(server.origin, max_bytes=100_000, timeout=1.0)
    failure: BaseException | None = None
    try:
        with source.fetch(f"{server.origin}/clips/{path}"):
            pass
    except ClipError as error:
        failure = error  # its traceback keeps the download's buffer alive, as a log or a reference cycle may
    assert failure is not None
    with contextlib.ExitStack() as opened:
        others = [opened.enter_context((tmp_path / str(number)).open("wb")) for number in range(64)]
        del failure
        gc.collect()
        assert [os.fstat(other.fileno()).st_size for other in others] == [0] * len(others)


def test_nothing_in_the_product_writes_to_a_descriptor_that_it_does_not_own() -> None:
    assert not [path for path in Path("streamer").rglob("*.py") if "closefd=False" in path.read_text()]


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_lack_of_descriptors_is_no_fault_of_the_source(server: OddServer, spare: int) -> None:
    """It shows where a file, a name's look-up or a connection wants one; some libraries call it by other names."""
    source = fetcher(server.origin)
    uri = f"{server.origin}/clips/a.mp4"
    with source.fetch(uri) as path:
        assert path.read_bytes() == CLIP
    await_quiet_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
    try:
        with pytest.raises(MachineError) as caught, source.fetch(uri):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.lack is Lack.DESCRIPTORS
    with source.fetch(uri) as path:
        assert path.read_bytes() == CLIP


FIRST_FETCH = """
import sys, threading
from streamer.machine import MachineError
from streamer.video.fetching.fetcher import Fetcher

def start(self):
    raise RuntimeError("can't start new thread")

source = Fetcher(sys.argv[1:], allowed_networks=["127.0.0.0/8"], max_bytes=1 << 20, timeout=20)
usual, threading.Thread.start = threading.Thread.start, start
for host in "127.0.0.1", "localhost":  # a name is looked up by a thread
    try:
        with source.fetch(sys.argv[1].replace("127.0.0.1", host) + "/clips/a.mp4") as path:
            print(host, path.stat().st_size)
    except Exception as error:
        print(host, type(error).__name__, error)
threading.Thread.start = usual
with source.fetch(sys.argv[1] + "/clips/a.mp4") as path:
    print(path.stat().st_size)
"""


def test_where_no_thread_can_be_started_the_first_download_does_not_hang(server: OddServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_FETCH, server.origin, server.origin.replace("127.0.0.1", "localhost")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"127.0.0.1 {len(CLIP)}",
        "localhost MachineError processes: can't start new thread",
        str(len(CLIP)),
    ]


def test_a_local_file_that_no_descriptor_is_left_for_is_no_fault_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CLIP)
    source = fetcher(tmp_path.as_uri())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(MachineError) as caught, source.fetch((tmp_path / "a.mp4").as_uri()):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.lack is Lack.DESCRIPTORS


def test_many_threads_share_one_fetcher_and_a_slow_source_holds_up_no_other(server: OddServer) -> None:
    source = fetcher(server.origin, timeout=20)
    lengths: list[int] = []
    stuck: list[tuple[Reason, Retry]] = []

    def work() -> None:
        with source.fetch(f"{server.origin}/clips/a.mp4") as path:
            lengths.append(path.stat().st_size)

    def wait() -> None:
        stuck.append(refusal(source, f"{server.origin}/clips/stalling"))

    slow = [threading.Thread(target=wait) for _ in range(120)]
    quick = [threading.Thread(target=work) for _ in range(10)]
    for thread in (*slow, *quick):
        thread.start()
    for thread in quick:
        thread.join()
    assert lengths == [len(CLIP)] * 10
    assert stuck == []
    server.stopped.set()
    for thread in slow:
        thread.join()
    assert stuck == [FAILED_FOR_NOW] * 120


def test_a_clip_error_survives_the_way_between_processes() -> None:
    sent = pickle.dumps(ClipError(Reason.FETCH_FAILED, "http 503", Retry.FOR_A_WHILE))
    error = pickle.loads(sent)  # noqa: S301 - made in the line above
    assert (error.reason, error.detail, error.retry) == (Reason.FETCH_FAILED, "http 503", Retry.FOR_A_WHILE)


@pytest.mark.parametrize(
    ("folder", "broad"),
    [
        ("/", True),
        ("/root", True),
        ("HOME", True),
        ("HOME/..", True),
        ("HOME/clips", False),
        ("HOME/link-to-home", True),
        ("/srv/clips", False),
    ],
)
def test_folders_with_private_files_in_them_are_named(
    folder: str, broad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "link-to-home").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    path = folder.replace("HOME", str(home))
    assert fetcher(f"file:{path}", "https://cdn.example.com/").broad_folders() == [Path(path)] * broad
