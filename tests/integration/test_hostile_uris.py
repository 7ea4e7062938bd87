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
from driver import EMBEDDED, UPLOADED, Bus, Record, Service, apply_topics, check_dead_letter, environment
from footage import tiny_footage
from odd_server import CLIP, OddServer, serving

from streamer.events import Reason
from streamer.video import ClipError, Fetcher, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamer.kafka.broker import LocalKafka

OUTSIDE = "outside every allowed prefix"
DOTS = "'.' or '..'"
CONTROL = "control characters in the URI"
SCHEME = "only file:, http:, https:, s3: and gs: URIs are fetched"
CREDENTIALS = "credentials in the URI"
ENCODE = "must be percent-encoded"
ODD_ADDRESS = "not written as four decimal numbers"
NOT_A_URL = "a host or port that is none"
NO_HOST = "needs a host"
NOT_REGULAR = "not a regular file"
NOT_PUBLIC = "is neither public nor in an allowed network"


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
    assert time.monotonic() - began < 5
    assert (caught.value.reason, caught.value.retry) == (Reason.URI_REFUSED, Retry.NEVER), caught.value.detail
    assert caught.value.detail.isprintable()
    assert "secret" not in caught.value.detail
    return caught.value.detail


HOSTILE = {
    # -- files: traversal
    "file: beside": ("file:{folder}/clips-secret/a.mp4", OUTSIDE),
    "file: case of the scheme": ("fIlE://{folder}/clips-secret/a.mp4", OUTSIDE),
    "file: dots": ("file:{clips}/../clips-secret/a.mp4", OUTSIDE),
    "file: dots through nothing": ("file:{clips}/absent/../../clips-secret/absent.mp4", OUTSIDE),
    "file: encoded dots": ("file:{clips}/%2e%2e/clips-secret/a.mp4", OUTSIDE),
    "file: encoded dots and slashes": ("file:{clips}/%2E%2e%2fclips-secret%2Fa.mp4", OUTSIDE),
    "file: backslashes": ("file:{clips}\\..\\clips-secret\\a.mp4", OUTSIDE),
    "file: encoded null": ("file:{clips}/a.mp4%00.txt", "a null character"),
    "file: null": ("file:{clips}/a.mp4\0.txt", CONTROL),
    "file: newline": ("file:{clips}/a.mp4\n", CONTROL),
    "file: half a character": ("file:{clips}/\ud800.mp4", "surrogate"),
    "file: password file": ("file:///etc/passwd", OUTSIDE),
    "file: what does not exist outside": ("file:///no/such/file", OUTSIDE),
    "file: absent folder of a user": ("file:~root/a.mp4", "absolute path"),
    "file: relative": ("file:clips/a.mp4", "absolute path"),
    "file: nothing": ("file:", "absolute path"),
    "file: root": ("file:/", OUTSIDE),
    # -- files: links and what is no file
    "file: link to a file": ("file:{clips}/out.mp4", OUTSIDE),
    "file: relative link": ("file:{clips}/relative.mp4", OUTSIDE),
    "file: link to a folder": ("file:{clips}/up/clips-secret/a.mp4", OUTSIDE),
    "file: link over a link": ("file:{clips}/hop.mp4", OUTSIDE),
    "file: link to a device": ("file:{clips}/zero", OUTSIDE),
    "file: link to the environment": ("file:{clips}/environ", OUTSIDE),
    "file: device": ("file:/dev/zero", OUTSIDE),
    "file: environment": ("file:/proc/self/environ", OUTSIDE),
    "file: descriptor": ("file:/proc/self/fd/0", OUTSIDE),
    "file: FIFO": ("file:{clips}/fifo", NOT_REGULAR),
    "file: socket": ("file:{clips}/socket", NOT_REGULAR),
    "file: folder": ("file:{clips}", NOT_REGULAR),
    "file: folder below": ("file:{clips}/deep/", NOT_REGULAR),
    # -- files: other hosts
    "file: host": ("file://host{clips}/a.mp4", "no other host"),
    "file: loopback by number": ("file://127.0.0.1{clips}/a.mp4", "no other host"),
    "file: UNC": ("file:////host/share/a.mp4", OUTSIDE),
    "file: UNC in backslashes": ("file:\\\\host\\share\\a.mp4", "absolute path"),
    "file: credentials": ("file://user:secret@localhost{clips}/a.mp4", "no other host"),
    "file: query": ("file:{clips}/a.mp4?x=1", ENCODE),
    "file: fragment": ("file:{clips}/a.mp4#x", ENCODE),
    # -- http: paths
    "http: beside": ("{web}/clips-secret/a.mp4", OUTSIDE),
    "http: elsewhere": ("{web}/private/a.mp4", OUTSIDE),
    "http: no path": ("{web}", OUTSIDE),
    "http: case of the path": ("{web}/CLIPS/a.mp4", OUTSIDE),
    "http: prefix in the query": ("{web}/private/a.mp4?/clips/a.mp4", OUTSIDE),
    "http: dots": ("{web}/clips/../private/a.mp4", OUTSIDE),
    "http: encoded dots": ("{web}/clips/%2e%2e/private/a.mp4", OUTSIDE),
    "http: half-encoded dots": ("{web}/clips/.%2e/private/a.mp4", OUTSIDE),
    "http: encoded slash": ("{web}/clips/..%2fprivate/a.mp4", DOTS),
    "http: encoded backslash": ("{web}/clips/..%5cprivate/a.mp4", DOTS),
    "http: backslash": ("{web}/clips/..\\private/a.mp4", DOTS),
    "http: doubly encoded dots": ("{web}/clips/%252e%252e/private/a.mp4", DOTS),
    "http: doubly encoded slash": ("{web}/clips/..%252fprivate/a.mp4", DOTS),
    "http: trebly encoded": ("{web}/clips/%25252e%25252e%25252fprivate/a.mp4", DOTS),
    "http: dots with a parameter": ("{web}/clips/..;x=1/private/a.mp4", DOTS),
    "http: fragment": ("{web}/clips/a.mp4#fragment", ENCODE),
    "http: header": ("{web}/clips/a.mp4 HTTP/1.1\r\nX-Injected: 1", CONTROL),
    "http: tab in the host": ("http://127.0.0.1\t:{port}/clips/a.mp4", CONTROL),
    "http: null": ("{web}/clips/a.mp4\0", CONTROL),
    "http: half a character": ("{web}/clips/\udc80.mp4", "surrogate"),
    # -- http: hosts
    "http: other port": ("http://{other}/clips/a.mp4", OUTSIDE),
    "http: other scheme": ("https://127.0.0.1:{port}/clips/a.mp4", OUTSIDE),
    "http: other name of the same": ("http://localhost:{port}/clips/a.mp4", OUTSIDE),
    "http: name that begins the same": ("http://127.0.0.1.example.invalid:{port}/clips/a.mp4", OUTSIDE),
    "http: every address": ("http://0.0.0.0:{port}/clips/a.mp4", OUTSIDE),
    "http: link-local": ("http://169.254.169.254/latest/meta-data/", OUTSIDE),
    "http: IPv6": ("http://[::1]:{port}/clips/a.mp4", OUTSIDE),
    "http: IPv4 in IPv6": ("http://[::ffff:127.0.0.1]:{port}/clips/a.mp4", OUTSIDE),
    "http: short address": ("http://127.1:{port}/clips/a.mp4", ODD_ADDRESS),
    "http: decimal address": ("http://2130706433:{port}/clips/a.mp4", ODD_ADDRESS),
    "http: hexadecimal address": ("http://0x7f.1:{port}/clips/a.mp4", ODD_ADDRESS),
    "http: octal address": ("http://0177.0.0.1:{port}/clips/a.mp4", ODD_ADDRESS),
    "http: final dot": ("http://127.0.0.1.:{port}/clips/a.mp4", OUTSIDE),
    "http: homograph": ("http://\u0435\u0445ample.com/clips/a.mp4", OUTSIDE),
    "http: soft hyphen": ("http://exa\u00admple.com/clips/a.mp4", NOT_A_URL),
    "http: host as user": ("http://127.0.0.1:{port}@{other}/clips/a.mp4", CREDENTIALS),
    "http: host as user before a fragment": ("http://{other}#@127.0.0.1:{port}/clips/a.mp4", ENCODE),
    "http: allowed host before a fragment": ("http://127.0.0.1:{port}#@{other}/clips/a.mp4", ENCODE),
    "http: host before a backslash": ("http://{other}\\@127.0.0.1:{port}/clips/a.mp4", NOT_A_URL),
    "http: host before a query": ("http://{other}?@127.0.0.1:{port}/clips/a.mp4", OUTSIDE),
    "http: credentials": ("http://user:secret@127.0.0.1:{port}/clips/a.mp4", CREDENTIALS),
    "http: user": ("http://user@127.0.0.1:{port}/clips/a.mp4", CREDENTIALS),
    "http: password": ("http://:secret@127.0.0.1:{port}/clips/a.mp4", CREDENTIALS),
    "http: encoded credentials": ("http://user%3Asecret@127.0.0.1:{port}/clips/a.mp4", CREDENTIALS),
    "http: no host": ("http:///clips/a.mp4", NO_HOST),
    "http: nothing": ("http:", NO_HOST),
    "http: one slash": ("http:/127.0.0.1:{port}/clips/a.mp4", NO_HOST),
    "http: half an IPv6 address": ("http://[::1/clips/a.mp4", NOT_A_URL),
    "http: port that is none": ("http://127.0.0.1:secret/clips/a.mp4", NOT_A_URL),
    "http: name that unfolds": ("http://user:secret@a\u2100b.example/clips/a.mp4", NOT_A_URL),
    # -- object stores
    "s3: beside": ("s3://clips-bucket/clips-secret/a.mp4", OUTSIDE),
    "s3: slash before the key": ("s3://clips-bucket//clips/a.mp4", OUTSIDE),
    "s3: dots": ("s3://clips-bucket/clips/../private/a.mp4", DOTS),
    "s3: dot": ("s3://clips-bucket/./clips/a.mp4", DOTS),
    "s3: other bucket": ("s3://other-bucket/clips/a.mp4", OUTSIDE),
    "s3: bucket in other case": ("s3://Clips-Bucket/clips/a.mp4", OUTSIDE),
    "s3: no key": ("s3://clips-bucket/clips-bucket", OUTSIDE),
    "s3: bucket alone": ("s3://clips-bucket", OUTSIDE),
    "s3: access point": ("s3://arn:aws:s3:us-east-1:123456789012:accesspoint/x/clips/a.mp4", "no bucket"),
    "s3: endpoint": ("s3://{other}/clips-bucket/clips/a.mp4", "no bucket"),
    "s3: credentials": ("s3://AKIA:secret@clips-bucket/clips/a.mp4", CREDENTIALS),
    "s3: one slash": ("s3:/clips-bucket/clips/a.mp4", "is named as s3://BUCKET/KEY"),
    "s3: chained": ("s3://clips-bucket/clips/a.zip::http://{other}/a.zip", "chain"),
    "s3: newline": ("s3://clips-bucket/clips/a\nb.mp4", CONTROL),
    "gs: not allowed": ("gs://clips-bucket/clips/a.mp4", OUTSIDE),
    # -- fsspec's own, and others' schemes
    **{
        f"scheme: {uri}": (uri, SCHEME)
        for uri in (
            "local:{clips}/a.mp4", "local::{clips}/a.mp4", "local://{clips}/a.mp4", "local::file:{clips}/a.mp4",
            "simplecache::{web}/clips/a.mp4", "filecache::{web}/clips/a.mp4", "blockcache::{web}/clips/a.mp4",
            "cached::s3://clips-bucket/clips/a.mp4", "zip://a.mp4::file:{clips}/a.zip", "zip://*::{web}/clips/a.zip",
            "tar://a.mp4::{web}/clips/a.tar", "libarchive://a.mp4::{web}/clips/a.7z", "dir://clips::{web}",
            "reference://::{web}/clips/a.json", "memory://a.mp4", "memory:a.mp4", "data:video/mp4;base64,AAAA",
            "data:,a", "ftp://127.0.0.1/a.mp4", "sftp://user:secret@127.0.0.1/a.mp4", "ssh://127.0.0.1/a.mp4",
            "smb://127.0.0.1/share/a.mp4", "github://user:repo@main/a.mp4", "git://{clips}/a.mp4", "hf://datasets/x/a",
            "hdfs://127.0.0.1/a.mp4", "webhdfs://127.0.0.1/a.mp4", "arrow_hdfs://127.0.0.1/a.mp4", "jar:{web}/a.jar!/a",
            "jlab://{other}/a.mp4", "jupyter://{other}/a.mp4", "dask://a.mp4", "dropbox://a.mp4", "gdrive://a.mp4",
            "gcs://clips-bucket/clips/a.mp4", "s3a://clips-bucket/clips/a.mp4", "s3n://clips-bucket/clips/a.mp4",
            "abfs://c@a.example/a.mp4", "az://c/a.mp4", "oci://b@n/a.mp4", "root://{other}//a.mp4", "dvc://a.mp4",
            "lakefs://r/b/a.mp4", "box://a.mp4", "wandb://a/b/c/a.mp4", "tos://b/a.mp4", "generic://a", "asynclocal:/a",
            "gopher://{other}/_GET", "dict://{other}/d", "ldap://{other}/", "rtsp://{other}/a", "udp://{other}",
            "concat:{clips}/a.mp4|{clips}/a.mp4", "subfile,,start,0,end,9,,:{clips}/a.mp4", "pipe:0", "fd:0",
            "javascript:alert(1)", "http+unix://%2Frun%2Fa.sock/a", " file:{clips}/a.mp4", " {web}/clips/a.mp4",
            "\ufefffile:{clips}/a.mp4",
            "\uff46\uff49\uff4c\uff45:{clips}/a.mp4", "{clips}/a.mp4", "//127.0.0.1/clips/a.mp4",
            "\\\\host\\share\\a.mp4", "127.0.0.1:{port}/clips/a.mp4", "clips/a.mp4", "C:\\clips\\a.mp4", ":", "",
        )
    },
    "http: chained": ("{web}/clips/a.zip::zip://a.mp4", ENCODE),
    "http: chained in the query": ("{web}/clips/a.mp4?x::memory://a", ENCODE),
    "file: chained": ("file:{clips}/a.zip::zip://a.mp4", ENCODE),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_uri_is_refused_with_its_reason_and_nothing_is_asked_for(place: Place, name: str) -> None:
    template, words = HOSTILE[name]
    assert words in refused(place.fetcher, place.uri(template))
    assert place.asked == []


def test_the_doors_are_open_to_what_is_allowed(place: Place) -> None:
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
def test_what_looks_like_a_way_out_and_is_a_name_leads_nowhere(place: Place, uri: str, reason: Reason) -> None:
    with pytest.raises(ClipError) as caught, place.fetcher.fetch(place.uri(uri)) as path:
        pytest.fail(f"it was fetched as {path}")
    assert (caught.value.reason, caught.value.retry) == (reason, Retry.NEVER)


@pytest.mark.parametrize(
    "uri", ["file:/dev/zero", "file:/proc/self/environ", "file:/proc/1/cmdline", "file:/sys/power/state"]
)
def test_what_the_kernel_shows_as_files_is_refused_even_where_everything_is_allowed(uri: str) -> None:
    assert refused(Fetcher(["file:/"], max_bytes=10**6, timeout=5), uri) == NOT_REGULAR


# -- redirects ---------------------------------------------------------------------------------------------

NO_URL = "redirected to something that is no http(s) URL"
REDIRECTS = {
    "out": OUTSIDE,
    "dots": OUTSIDE,
    "encoded-dots": DOTS,
    "doubly-encoded-dots": DOTS,
    "to-file": NO_URL,
    "to-data": NO_URL,
    "to-ftp": NO_URL,
    "to-nothing": NO_URL,
    "to-https": OUTSIDE,
    "to-link-local": OUTSIDE,
    "to-ipv6-loopback": OUTSIDE,
    "to-decimal": OUTSIDE,
    "away": OUTSIDE,
}


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


def test_the_service_dead_letters_hostile_uris_and_embeds_the_good_clip_behind_them(
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
            _, words = wanted[original.key.decode()]
            assert letter.header("dlq.reason") == "uri_refused", letter.header("dlq.error")
            assert words in letter.header("dlq.error")
        assert [record.key for record in bus.read(EMBEDDED)] == [b"good"]
        assert place.asked == []


def upload(clip_id: str, uri: str) -> Record:
    return Record.of(clip_id, {"clip_id": clip_id, "uri": uri, "uploaded_at": datetime.now(UTC).isoformat()})
