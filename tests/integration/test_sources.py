"""Sources that misbehave in every way, over http and S3: each ends within its limits, and says what it was."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import boto3
import numpy as np
import pytest
from footage import tiny_footage
from moto.server import ThreadedMotoServer
from odd_server import CLIP, LOOPBACK, OddServer, serving

from streamer.events import Reason
from streamer.video import ClipError, DecodePool, Fetcher, Retry, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 200_000
TOTAL_S, SILENCE_S = 10.0, 5.0
SHORT_TOTAL_S, SHORT_SILENCE_S = 2.0, 1.0
"""Limits for sources that end by no other."""
SLACK_S = 5.0
"""For a busy machine. What would not end by itself takes 20 seconds at least."""

NOT_FOUND = (Reason.NOT_FOUND, Retry.NEVER)
REFUSED = (Reason.URI_REFUSED, Retry.NEVER)
FAILED = (Reason.FETCH_FAILED, Retry.NEVER)
FAILED_BY_CHANCE = (Reason.FETCH_FAILED, Retry.ONCE)
FAILED_FOR_NOW = (Reason.FETCH_FAILED, Retry.FOR_A_WHILE)
TOO_LARGE = (Reason.CLIP_TOO_LARGE, Retry.NEVER)

Verdict = tuple[Reason, Retry]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a source does (the last segment of its path), and what is to be said of it."""

    name: str
    verdict: Verdict
    words: str
    asked: int = 1


NEVER_DONE = [
    Fault("silent", FAILED_FOR_NOW, "nothing received for 1 s"),
    Fault("dripping-head", FAILED_FOR_NOW, "nothing received for 1 s"),
    Fault("stalling", FAILED_FOR_NOW, "nothing received for 1 s"),
    Fault("dripping", FAILED_FOR_NOW, "not complete after 2 s"),
]
TOO_MUCH = [
    Fault("endless", TOO_LARGE, "more, the limit is 200000 bytes"),
    Fault("endless-chunks", TOO_LARGE, "more, the limit is 200000 bytes"),
    Fault("huge", TOO_LARGE, "1000000000000 bytes, the limit is 200000 bytes"),
]
DROPPED = [
    Fault("short", FAILED_FOR_NOW, "payload"),
    Fault("drops-weak", FAILED_FOR_NOW, "payload"),
    Fault("drops-rangeless", FAILED_FOR_NOW, "payload"),
    Fault("drops-misplaced", FAILED, "http 206 is no answer with a body", asked=2),
    Fault("drops-at-once", FAILED_FOR_NOW, "payload"),
]
WORDS = [
    Fault("noise", FAILED_BY_CHANCE, "the answer is no valid HTTP"),
    Fault("long-at-once", FAILED_BY_CHANCE, "the answer is no valid HTTP"),
    Fault("strange-words", FAILED_FOR_NOW, "http 500: Internal Server Error"),
    Fault("gzip", FAILED, "the body is compressed (gzip)"),
    Fault("part", FAILED, "http 206 is no answer with a body"),
    Fault("round", FAILED, "too many redirects", asked=10),
    Fault("204", FAILED, "http 204 is no answer with a body"),
    Fault("304", FAILED, "http 304 is no answer with a body"),
]
STATUSES = [
    Fault("400", FAILED, "http 400"),
    Fault("401", FAILED, "http 401"),
    Fault("403", FAILED, "http 403"),
    Fault("404", NOT_FOUND, "http 404"),
    Fault("408", FAILED_FOR_NOW, "http 408"),
    Fault("410", NOT_FOUND, "http 410"),
    Fault("416", FAILED, "http 416"),
    Fault("425", FAILED_FOR_NOW, "http 425"),
    Fault("429", FAILED_FOR_NOW, "http 429"),
    Fault("451", FAILED, "http 451"),
    Fault("499", FAILED, "http 499: unknown status"),
    Fault("500", FAILED_FOR_NOW, "http 500"),
    Fault("503", FAILED_FOR_NOW, "http 503"),
]


def by_name(fault: Fault) -> str:
    return fault.name


def fetcher(*allowed: str, total: float = TOTAL_S, silence: float = SILENCE_S, max_bytes: int = MAX_BYTES) -> Fetcher:
    return Fetcher(allowed, allowed_networks=LOOPBACK, max_bytes=max_bytes, timeout=total, first_byte_timeout=silence)


def failure(source: Fetcher, uri: str, *, within: float = TOTAL_S) -> ClipError:
    """Return how a fetch fails, which must be within its limits."""
    began = time.monotonic()
    with pytest.raises(ClipError) as caught, source.fetch(uri) as path:
        pytest.fail(f"{uri} was fetched, {path.stat().st_size} bytes")
    assert time.monotonic() - began < within + SLACK_S
    error = caught.value
    assert error.detail
    assert error.detail.isprintable()
    assert len(error.detail) <= 200
    assert uri not in error.detail
    return error


def verdict(error: ClipError) -> Verdict:
    return error.reason, error.retry


def content(source: Fetcher, uri: str) -> bytes:
    with source.fetch(uri) as path:
        return path.read_bytes()


@pytest.fixture
def server() -> Iterator[OddServer]:
    with serving() as running:
        yield running


# -- http --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", NEVER_DONE, ids=by_name)
def test_an_http_server_that_never_comes_to_an_end_is_left(server: OddServer, fault: Fault) -> None:
    source = fetcher(server.origin, total=SHORT_TOTAL_S, silence=SHORT_SILENCE_S)
    error = failure(source, f"{server.origin}/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [*TOO_MUCH, *DROPPED, *WORDS, *STATUSES], ids=by_name)
def test_what_an_http_server_does_wrong_is_told(server: OddServer, fault: Fault) -> None:
    error = failure(fetcher(server.origin), f"{server.origin}/clips/{fault.name}?signature=secret")
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert "secret" not in error.detail
    assert len(server.asked) == fault.asked


def test_a_download_is_decoded_in_a_process_apart(server: OddServer, tmp_path: Path) -> None:
    [film, *_] = tiny_footage(tmp_path)
    server.clip = film.path.read_bytes()
    pool = DecodePool(Sampling(0.5, 64), np.ascontiguousarray, workers=2, timeout=60, memory=2 << 30)
    try:
        with (
            fetcher(server.origin, max_bytes=len(server.clip)).fetch(f"{server.origin}/clips/drops") as path,
            pool.sampled(path) as downloaded,
            pool.sampled(film.path) as original,
        ):
            assert len(original.frames) > 0
            assert np.array_equal(downloaded.frames, original.frames)
    finally:
        pool.close()


def test_what_comes_behind_the_announced_length_is_no_part_of_the_clip_nor_the_next_answer(server: OddServer) -> None:
    source = fetcher(server.origin)
    for _ in range(3):
        assert content(source, f"{server.origin}/clips/long") == CLIP[:1000]
        assert content(source, f"{server.origin}/clips/a.mp4") == CLIP


def test_a_name_of_a_content_coding_that_is_none_does_no_harm(server: OddServer) -> None:
    assert content(fetcher(server.origin), f"{server.origin}/clips/odd-coding") == CLIP


def test_a_server_that_is_unavailable_at_first_gives_the_clip_at_the_next_try(server: OddServer) -> None:
    source, uri = fetcher(server.origin), f"{server.origin}/clips/unavailable-at-first"
    assert verdict(failure(source, uri)) == FAILED_FOR_NOW
    assert content(source, uri) == CLIP


def test_nothing_of_one_clip_is_told_to_the_server_with_the_next(server: OddServer) -> None:
    origin = f"http://localhost:{server.port}"  # a name, since addresses get no cookies back in any case
    source = fetcher(origin)
    for _ in range(2):
        assert content(source, f"{origin}/clips/cookie") == CLIP


@pytest.mark.parametrize(("name", "version"), [("drops", '"v1"'), ("drops-dated", "Mon, 05 Jan 2026 10:00:00 GMT")])
def test_a_dropped_transfer_goes_on_where_it_ended(server: OddServer, name: str, version: str) -> None:
    assert content(fetcher(server.origin), f"{server.origin}/clips/{name}") == CLIP
    assert server.ranges == [(None, None), ("bytes=40000-", version), ("bytes=80000-", version)]


def test_a_source_that_was_replaced_during_a_drop_is_taken_anew(server: OddServer) -> None:
    assert content(fetcher(server.origin), f"{server.origin}/clips/drops-changed") == CLIP[::-1]
    assert server.ranges == [(None, None), ("bytes=40000-", '"v1"')]


def test_the_byte_limit_counts_over_all_connections_of_a_transfer(server: OddServer) -> None:
    server.clip = CLIP * 2
    error = failure(fetcher(server.origin, max_bytes=len(CLIP) * 2 - 1), f"{server.origin}/clips/drops")
    assert verdict(error) == TOO_LARGE
    assert content(fetcher(server.origin, max_bytes=len(CLIP) * 2), f"{server.origin}/clips/moved")


def test_drops_without_end_end(server: OddServer) -> None:
    server.clip = CLIP * 10
    error = failure(fetcher(server.origin, max_bytes=10**8), f"{server.origin}/clips/drops")
    assert verdict(error) == FAILED_FOR_NOW
    assert len(server.asked) == 4


def test_no_server_at_all_is_a_transient_failure() -> None:
    with serving() as server:
        origin = server.origin
    assert verdict(failure(fetcher(origin), f"{origin}/clips/a.mp4")) == FAILED_FOR_NOW


def test_a_name_that_does_not_resolve_is_a_transient_failure() -> None:
    assert (
        verdict(failure(fetcher("http://no.such.host.invalid/"), "http://no.such.host.invalid/a.mp4")) == FAILED_FOR_NOW
    )


def test_a_name_server_that_does_not_answer_holds_up_no_other_source(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, released = socket.getaddrinfo, threading.Event()

    def hang(host: Any, *arguments: Any, **named: Any) -> Any:
        if host == "hanging.example":
            released.wait(20)
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    hanging = [f"http://hanging.example:{port}/" for port in range(1, 21)]
    source = fetcher(server.origin, f"http://localhost:{server.port}/", *hanging, silence=SHORT_SILENCE_S)
    errors: list[ClipError] = []
    threads = [
        threading.Thread(target=lambda uri=uri: errors.append(failure(source, f"{uri}a.mp4"))) for uri in hanging
    ]
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert content(source, f"http://localhost:{server.port}/clips/a.mp4") == CLIP
        for thread in threads:
            thread.join()
    finally:
        released.set()
    assert {verdict(error) for error in errors} == {FAILED_FOR_NOW}
    assert len(errors) == len(hanging)


def test_proxies_of_the_environment_see_nothing(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.origin)
        monkeypatch.setenv("ALL_PROXY", proxy.origin)
        assert content(fetcher(server.origin), f"{server.origin}/clips/a.mp4") == CLIP
        assert proxy.asked == []


# -- S3 ----------------------------------------------------------------------------------------------------


def operator(endpoint: str) -> dict[str, str]:
    """Return the settings of an operator whose S3 is at ``endpoint``."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def s3_fetcher(
    environment: dict[str, str], *allowed: str, total: float = TOTAL_S, silence: float = SILENCE_S
) -> Fetcher:
    """Make a fetcher in this environment, and nothing else of AWS in it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        return fetcher(*allowed, total=total, silence=silence)


ODD_KEYS = [
    "clips/a.mp4",
    "clips/with spaces and +.mp4",
    "clips/Ünïcödé/自転車 🚲.mp4",
    "clips/100%.mp4",
    "clips/%2e%2e/a.mp4",
    "clips/a%20b%2Fc.mp4",
    "clips/a.mp4?versionId=null",
    "clips/a.mp4#1",
    "clips//empty//segments.mp4",
    "clips/folder/",
    "clips/*[a-z]?.mp4",
    "clips/a\\..\\b.mp4",
    "clips/a:b@c&d=e;f,g$h!i'(j).mp4",
]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """An S3 endpoint with some objects."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    store = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="very-secret",  # noqa: S106 - moto takes any
    )
    store.create_bucket(Bucket="clips-bucket")
    store.create_bucket(Bucket="other-bucket")
    for key in [*ODD_KEYS, "private/a.mp4", "/clips/a.mp4", "clips-secret/a.mp4"]:
        store.put_object(Bucket="clips-bucket", Key=key, Body=body_of(key))
    store.put_object(Bucket="other-bucket", Key="clips/a.mp4", Body=b"other")
    store.put_object(Bucket="clips-bucket", Key="clips/large.mp4", Body=bytes(MAX_BYTES + 1))
    yield endpoint
    server.stop()


def body_of(key: str) -> bytes:
    return f"the object {key}".encode() * 10


@pytest.fixture(scope="module")
def s3(moto: str) -> Fetcher:
    return s3_fetcher(operator(moto), "s3://clips-bucket/clips/", "s3://no-such-bucket/", total=20, silence=10)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_object_is_read_by_its_key_as_it_stands(s3: Fetcher, key: str) -> None:
    assert content(s3, f"s3://clips-bucket/{key}") == body_of(key)


@pytest.mark.parametrize(
    ("uri", "expected", "words"),
    [
        ("s3://clips-bucket/clips/absent.mp4", NOT_FOUND, "s3 404: NoSuchKey"),
        ("s3://clips-bucket/clips/a.mp4?versionId=1", NOT_FOUND, "s3 404: NoSuchKey"),
        ("s3://no-such-bucket/a.mp4", NOT_FOUND, "s3 404: NoSuchBucket"),
        ("s3://clips-bucket/clips/large.mp4", TOO_LARGE, "200001 bytes, the limit is 200000 bytes"),
        ("s3://clips-bucket/private/a.mp4", REFUSED, "outside every allowed prefix"),
        ("s3://clips-bucket/clips-secret/a.mp4", REFUSED, "outside every allowed prefix"),
        ("s3://clips-bucket//clips/a.mp4", REFUSED, "outside every allowed prefix"),
        ("s3://other-bucket/clips/a.mp4", REFUSED, "outside every allowed prefix"),
    ],
)
def test_an_object_that_cannot_be_had_says_why(s3: Fetcher, uri: str, expected: Verdict, words: str) -> None:
    with pytest.raises(ClipError) as caught, s3.fetch(uri):
        pytest.fail("it was fetched")
    assert verdict(caught.value) == expected
    assert words in caught.value.detail


S3_FAULTS = [
    *TOO_MUCH,
    Fault("short", FAILED_FOR_NOW, "s3: "),
    Fault("drops-at-once", FAILED_FOR_NOW, "s3: "),
    Fault("noise", FAILED_FOR_NOW, "s3: "),
    Fault("403", FAILED, "s3 403: 403"),
    Fault("404", NOT_FOUND, "s3 404"),
    Fault("408", FAILED_FOR_NOW, "s3 408"),
    Fault("429", FAILED_FOR_NOW, "s3 429"),
    Fault("500", FAILED_FOR_NOW, "s3 500"),
    Fault("503", FAILED_FOR_NOW, "s3 503"),
]


@pytest.fixture(scope="module")
def odd_s3() -> Iterator[tuple[OddServer, dict[str, Fetcher]]]:
    """A store that misbehaves, and fetchers with the limits of either kind."""
    with serving() as server:
        environment, prefix = operator(server.origin), "s3://clips-bucket/clips/"
        yield (
            server,
            {
                "usual": s3_fetcher(environment, prefix),
                "short": s3_fetcher(environment, prefix, total=SHORT_TOTAL_S, silence=SHORT_SILENCE_S),
            },
        )


@pytest.mark.parametrize("fault", NEVER_DONE, ids=by_name)
def test_an_s3_endpoint_that_never_comes_to_an_end_is_left(
    odd_s3: tuple[OddServer, dict[str, Fetcher]], fault: Fault
) -> None:
    server, sources = odd_s3
    server.asked.clear()
    error = failure(sources["short"], f"s3://clips-bucket/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert server.asked == [f"/clips-bucket/clips/{fault.name}"]


@pytest.mark.parametrize("fault", S3_FAULTS, ids=by_name)
def test_what_an_s3_endpoint_does_wrong_is_told(odd_s3: tuple[OddServer, dict[str, Fetcher]], fault: Fault) -> None:
    server, sources = odd_s3
    source = sources["usual"]
    server.asked.clear()
    error = failure(source, f"s3://clips-bucket/clips/{fault.name}")
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert "secret" not in error.detail
    assert server.asked == [f"/clips-bucket/clips/{fault.name}"] * fault.asked


def test_a_dropped_object_goes_on_where_it_ended(server: OddServer) -> None:
    source = s3_fetcher(operator(server.origin), "s3://clips-bucket/clips/", total=20, silence=10)
    assert content(source, "s3://clips-bucket/clips/drops") == CLIP
    assert server.ranges == [(None, None), ("bytes=40000-", '"v1"'), ("bytes=80000-", '"v1"')]
    # A store that answers with the whole object instead.
    assert content(source, "s3://clips-bucket/clips/drops-changed") == CLIP[::-1]


def test_many_silent_objects_hold_up_no_other(server: OddServer) -> None:
    source = s3_fetcher(operator(server.origin), "s3://clips-bucket/clips/", total=30, silence=30)
    stuck: list[ClipError] = []

    def wait() -> None:
        with pytest.raises(ClipError) as caught, source.fetch("s3://clips-bucket/clips/stalling"):
            pytest.fail("it was fetched")
        stuck.append(caught.value)

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(server.asked) < len(threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert content(source, "s3://clips-bucket/clips/a.mp4") == CLIP
    assert stuck == []
    server.stopped.set()
    for thread in threads:
        thread.join()
    assert {verdict(error) for error in stuck} == {FAILED_FOR_NOW}


def test_no_s3_endpoint_at_all_is_a_transient_failure() -> None:
    with serving() as server:
        environment = operator(server.origin)
    error = failure(s3_fetcher(environment, "s3://clips-bucket/"), "s3://clips-bucket/clips/a.mp4")
    assert (*verdict(error), error.detail) == (*FAILED_FOR_NOW, "s3: EndpointConnectionError")


def test_a_store_without_credentials_is_a_failure_for_now(server: OddServer) -> None:
    environment = operator(server.origin)
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    error = failure(s3_fetcher(environment, "s3://clips-bucket/"), "s3://clips-bucket/clips/a.mp4")
    assert (*verdict(error), error.detail) == (*FAILED_FOR_NOW, "s3: NoCredentialsError")
    assert server.asked == []


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "absent"), ("AWS_ENDPOINT_URL_S3", "not a url")])
def test_an_environment_that_s3_cannot_use_is_told_at_construction(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"S3 cannot be used with this environment: .*{value}"):
        s3_fetcher(operator("http://127.0.0.1:1") | {name: value}, "s3://clips-bucket/")


# -- Google Cloud Storage ----------------------------------------------------------------------------------

with_gcsfs = pytest.mark.skipif(find_spec("gcsfs") is None, reason="the extra 'gs' is not installed")

GS_FAULTS = [
    *TOO_MUCH[2:],
    Fault("endless", TOO_LARGE, "the limit is 200000 bytes"),
    Fault("endless-chunks", TOO_LARGE, "the limit is 200000 bytes"),
    Fault("stalling", FAILED_FOR_NOW, "not complete after 2 s"),
    Fault("dripping", FAILED_FOR_NOW, "not complete after 2 s"),
    Fault("500", FAILED_FOR_NOW, "not complete after 2 s"),  # gcsfs tries again by itself until then
    Fault("400", FAILED, "gs 400"),
    Fault("401", FAILED_FOR_NOW, "gs 401"),
    Fault("403", FAILED, "gs 403"),
    Fault("404", NOT_FOUND, "gs 404"),
]


@pytest.fixture
def gs(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.origin)
    return fetcher("gs://clips-bucket/clips/", total=SHORT_TOTAL_S, silence=SHORT_SILENCE_S)


@with_gcsfs
@pytest.mark.parametrize("fault", GS_FAULTS, ids=by_name)
def test_what_a_gs_endpoint_does_wrong_is_told(gs: Fetcher, fault: Fault) -> None:
    error = failure(gs, f"gs://clips-bucket/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail


@with_gcsfs
def test_a_gs_object_is_read_by_its_key_as_it_stands(server: OddServer, gs: Fetcher, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        for key in ("clips/a.mp4", "clips/a%20?b#1/a.mp4", "clips//Ü/a.mp4"):
            assert content(gs, f"gs://clips-bucket/{key}") == CLIP
        failure(gs, "gs://clips-bucket/clips/404")
    asked = [unquote(path.removeprefix("/download/storage/v1/b/clips-bucket/o/")) for path in server.asked]
    assert asked[:3] == ["clips/a.mp4?alt=media", "clips/a%20?b#1/a.mp4?alt=media", "clips//Ü/a.mp4?alt=media"]
    assert list(tmp_path.iterdir()) == []
