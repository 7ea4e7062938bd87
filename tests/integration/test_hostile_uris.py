"""Uploads name their own sources. Whatever they name, nothing is read or asked for that is not allowed."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from streamer.events import Reason
from streamer.video import ClipError, Retry
from streamer.video.fetching.fetcher import Fetcher
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Record, Service, apply_topics, check_dead_letter, environment
from tests.support.footage import tiny_footage
from tests.support.hostile import (
    HOSTILE,
    NOT_PUBLIC,
    NOT_REGULAR,
    REDIRECTS,
)
from tests.support.odd_server import CLIP, OddServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka


@dataclass(frozen=True, slots=True)
class Place:
    """Where a good clip lies, behind three doors, each beside what must stay shut.

    Attributes:
        folder: `clips` in it is allowed.
        web: `/clips/` of it is allowed.
        other: A server that is not.
        store: The S3 endpoint; `clips/` in the bucket `clips-bucket` is allowed.
        fetcher: What all of this is allowed to.

    """

    folder: Path
    web: OddServer
    other: OddServer
    store: OddServer
    fetcher: Fetcher

    def uri(self, template: str) -> str:
        return template.format(
            folder=self.folder, clips=self.folder / "clips", web=self.web.origin, port=self.web.port,
            other=f"127.0.0.1:{self.other.port}",
        )  # fmt: skip

    @property
    def asked(self) -> list[str]:
        return [*self.web.asked, *self.other.asked, *self.store.asked]


def make_files(folder: Path) -> None:
    for name in ("clips", "clips-secret"):
        (folder / name / "deep").mkdir(parents=True)
    (folder / "clips" / "a.mp4").write_bytes(CLIP)
    (folder / "clips-secret" / "a.mp4").write_bytes(b"secret")
    clips = folder / "clips"
    (clips / "out.mp4").symlink_to(folder / "clips-secret" / "a.mp4")
    (clips / "relative.mp4").symlink_to("../clips-secret/a.mp4")
    (clips / "up").symlink_to(folder)
    (clips / "hop.mp4").symlink_to(clips / "up" / "clips-secret" / "a.mp4")
    (clips / "loop").symlink_to(clips / "loop")
    (clips / "zero").symlink_to("/dev/zero")
    (clips / "environ").symlink_to("/proc/self/environ")
    os.mkfifo(clips / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(clips / "socket"))


def of_aws(store: OddServer) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": store.origin,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    make_files(folder)
    with serving() as web, serving() as other, serving() as store, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in of_aws(store).items():
            patch.setenv(name, value)
        allowed = [f"file:{folder}/clips", f"{web.origin}/clips/", "s3://clips-bucket/clips/"]
        fetcher = Fetcher(
            allowed, allowed_networks=["127.0.0.0/8"], max_bytes=200_000, timeout=20, first_byte_timeout=10
        )
        yield Place(folder, web, other, store, fetcher)


@pytest.fixture(autouse=True)
def _unasked(place: Place) -> None:
    for server in (place.web, place.other, place.store):
        server.asked.clear()


def refused(fetcher: Fetcher, uri: str) -> str:
    """Return the words with which a URI is refused for good, which must not hang."""
    began = time.monotonic()
    with pytest.raises(ClipError) as caught, fetcher.fetch(uri) as path:
        pytest.fail(f"{uri!r} was fetched as {path}")
    assert time.monotonic() - began < 60
    assert (caught.value.reason, caught.value.retry) == (Reason.URI_REFUSED, Retry.NEVER), caught.value.detail
    assert caught.value.detail.isprintable()
    assert "secret" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_uri_is_refused_with_its_reason_and_nothing_is_requested(place: Place, name: str) -> None:
    template, words = HOSTILE[name]
    assert words in refused(place.fetcher, place.uri(template))
    assert place.asked == []


def test_allowed_file_http_and_s3_uris_are_fetched(place: Place) -> None:
    for uri in ("file:{clips}/a.mp4", "{web}/clips/a.mp4", "s3://clips-bucket/clips/a.mp4"):
        with place.fetcher.fetch(place.uri(uri)) as path:
            assert path.read_bytes() == CLIP
    assert place.asked == ["/clips/a.mp4", "/clips-bucket/clips/a.mp4"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:{clips}/%252e%252e/clips-secret/a.mp4", Reason.NOT_FOUND),
        ("file:{clips}/..\\clips-secret\\a.mp4", Reason.NOT_FOUND),
        ("file:{clips}/a.mp4/../../clips-secret/a.mp4", Reason.URI_REFUSED),
        ("file:{clips}/loop", Reason.FETCH_FAILED),
        ("file:{clips}/*.mp4", Reason.NOT_FOUND),
    ],
)
def test_unusual_file_paths_do_not_leave_the_prefix(place: Place, uri: str, reason: Reason) -> None:
    with pytest.raises(ClipError) as caught, place.fetcher.fetch(place.uri(uri)) as path:
        pytest.fail(f"it was fetched as {path}")
    assert (caught.value.reason, caught.value.retry) == (reason, Retry.NEVER)


@pytest.mark.parametrize(
    "uri", ["file:/dev/zero", "file:/proc/self/environ", "file:/proc/1/cmdline", "file:/sys/power/state"]
)
def test_what_the_kernel_shows_as_files_is_refused_even_where_everything_is_allowed(uri: str) -> None:
    assert refused(Fetcher(["file:/"], max_bytes=10**6, timeout=5), uri) == NOT_REGULAR


# -- redirects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDIRECTS)
def test_a_redirect_to_where_the_uri_could_not_point_is_not_followed(place: Place, name: str) -> None:
    place.web.elsewhere = f"{place.other.origin}/clips/a.mp4"
    assert REDIRECTS[name] in refused(place.fetcher, f"{place.web.origin}/clips/{name}")
    assert place.asked == [f"/clips/{name}"]


def test_a_redirect_within_the_prefixes_is_followed(place: Place) -> None:
    with place.fetcher.fetch(f"{place.web.origin}/clips/moved") as path:
        assert path.read_bytes() == CLIP
    assert place.asked == ["/clips/moved", "/clips/a.mp4"]


def test_a_redirect_to_another_allowed_host_still_meets_the_check_of_its_address(place: Place) -> None:
    place.web.elsewhere = f"http://localhost:{place.other.port}/clips/a.mp4"
    allowed = [f"{place.web.origin}/", f"http://localhost:{place.other.port}/"]
    uri = f"{place.web.origin}/clips/away"
    # The first host's address is allowed, and the second is looked up at another one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answering({"localhost": [["127.0.0.2"]]}))
        fetcher = Fetcher(allowed, allowed_networks=["127.0.0.1"], max_bytes=200_000, timeout=10)
        assert NOT_PUBLIC in refused(fetcher, uri)
    assert place.asked == ["/clips/away"]


# -- addresses ---------------------------------------------------------------------------------------------


def answering(names: dict[str, list[list[str]]]) -> Callable[..., Any]:
    """Make a name service that answers, for these names, with one list of addresses after the other."""
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *more: Any, **named: Any) -> Any:
        if host not in names:
            return real(host, port, *more, **named)
        answers = names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, kind, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, kind, 6, "", (address, port))
            for address in addresses
        ]

    return lookup


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["127.8.8.8"],
        ["0.0.0.0"],  # noqa: S104 - no binding: it leads to this host
        ["10.0.0.1"],
        ["100.64.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["fd00:ec2::254"],
        ["93.184.216.34", "127.0.0.1"],
    ],
    ids=",".join,
)
def test_a_name_that_resolves_to_an_address_that_is_not_public_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering({"cdn.example": [addresses]}))
    origin = f"http://cdn.example:{place.web.port}"
    fetcher = Fetcher([f"{origin}/clips/"], max_bytes=200_000, timeout=10)
    assert refused(fetcher, f"{origin}/clips/a.mp4") == f"the host's address {addresses[-1]} {NOT_PUBLIC}"
    assert place.asked == []


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]", "169.254.169.254"],  # noqa: S104 - as above
)
def test_an_allowed_host_is_refused_where_its_address_is_not_allowed(place: Place, host: str) -> None:
    origin = f"http://{host}:{place.web.port}"
    fetcher = Fetcher([f"{origin}/clips/"], max_bytes=200_000, timeout=10)
    assert NOT_PUBLIC in refused(fetcher, f"{origin}/clips/a.mp4")
    assert place.asked == []


def test_a_name_that_answers_with_another_address_the_second_time_is_checked_the_second_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("127.0.0.2", place.web.port) as private:
        names = {"cdn.example": [["127.0.0.1"], ["127.0.0.2"]]}
        monkeypatch.setattr(socket, "getaddrinfo", answering(names))
        origin = f"http://cdn.example:{place.web.port}"
        fetcher = Fetcher([f"{origin}/clips/"], allowed_networks=["127.0.0.1"], max_bytes=200_000, timeout=10)
        with fetcher.fetch(f"{origin}/clips/a.mp4") as path:
            assert path.read_bytes() == CLIP
        for _ in range(3):
            assert "127.0.0.2" in refused(fetcher, f"{origin}/clips/a.mp4")
        # And in the middle of one source, on its way through a redirect.
        names["cdn.example"] = [["127.0.0.1"], ["127.0.0.2"]]
        assert "127.0.0.2" in refused(fetcher, f"{origin}/clips/moved")
        assert place.asked == ["/clips/a.mp4", "/clips/moved"]
        assert private.asked == []


# -- the service -------------------------------------------------------------------------------------------

THROUGH_THE_SERVICE = [
    "file: dots", "file: encoded dots and slashes", "file: link to a file", "file: link to a folder", "file: FIFO",
    "file: environment", "http: doubly encoded dots", "http: link-local", "http: credentials",
    "s3: dots", "s3: credentials", "s3: chained", "scheme: local::{clips}/a.mp4", "scheme: memory://a.mp4",
    "scheme: simplecache::{web}/clips/a.mp4", "scheme: zip://*::{web}/clips/a.zip", "scheme: {clips}/a.mp4",
]  # fmt: skip


def test_the_service_dead_letters_hostile_uris_and_embeds_the_good_clip_after_them(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    make_files(tmp_path)
    [film, *_] = tiny_footage(tmp_path / "clips")
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    with serving() as web, serving() as other, serving() as store:
        allowed = [f"file:{tmp_path}/clips", f"{web.origin}/clips/", "s3://clips-bucket/clips/"]
        variables = environment(bus, tmp_path / "store", [], **of_aws(store)) | {
            "STREAMER_ALLOWED_URIS": json.dumps(allowed)
        }
        apply_topics(variables, tmp_path)
        place = Place(tmp_path, web, other, store, Fetcher([], max_bytes=1, timeout=1))
        wanted = {name: (place.uri(HOSTILE[name][0]), HOSTILE[name][1]) for name in THROUGH_THE_SERVICE}
        # An allowed host whose address is not.
        wanted["address"] = (f"{web.origin}/clips/a.mp4", NOT_PUBLIC)
        uploads = {name: uri for name, (uri, _) in wanted.items()} | {"good": film.path.as_uri()}
        with Service("embed", variables, tmp_path) as embedder:
            embedder.await_ready()
            sent = bus.publish(UPLOADED, [upload(name, uri) for name, uri in uploads.items()])
            bus.await_group("streamer-embed", UPLOADED, seconds=60, alive=[embedder])
            embedder.stop()
        letters = {letter.key: letter for letter in bus.read(f"{UPLOADED}.dlq")}
        assert len(letters) == len(wanted)
        for original in sent[:-1]:
            letter = letters[original.key]
            check_dead_letter(letter, original)
            _, words = wanted[(original.key or b"").decode()]
            assert letter.header("dlq.reason") == "uri_refused", letter.header("dlq.error")
            assert words in letter.header("dlq.error")
        assert [record.key for record in bus.read(EMBEDDED)] == [b"good"]
        assert place.asked == []


def upload(clip_id: str, uri: str) -> Record:
    return Record.of(clip_id, {"clip_id": clip_id, "uri": uri, "uploaded_at": datetime.now(UTC).isoformat()})
