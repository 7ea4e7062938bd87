"""Object stores, good and misbehaving: each object is read by its key, and each fault ends within its limits."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from urllib.parse import unquote

import boto3
import pytest
from moto.server import ThreadedMotoServer

from streamer.video import ClipError
from tests.support.misbehaviour import (
    FAILED,
    FAILED_FOR_NOW,
    MAX_BYTES,
    NEVER_DONE,
    NOT_FOUND,
    REFUSED,
    SHORT_SILENCE_S,
    SHORT_TOTAL_S,
    SILENCE_S,
    TOO_LARGE,
    TOO_MUCH,
    TOTAL_S,
    Fault,
    Verdict,
    by_name,
    content,
    failure,
    fetcher,
    verdict,
)
from tests.support.odd_server import CLIP, OddServer, serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.video.fetching.fetcher import Fetcher


@pytest.fixture
def server() -> Iterator[OddServer]:
    with serving() as running:
        yield running


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
        usual = s3_fetcher(environment, prefix)
        short = s3_fetcher(environment, prefix, total=SHORT_TOTAL_S, silence=SHORT_SILENCE_S)
        yield server, {"usual": usual, "short": short}


@pytest.mark.parametrize("fault", NEVER_DONE, ids=by_name)
def test_a_download_that_never_ends_is_abandoned_on_s3(
    odd_s3: tuple[OddServer, dict[str, Fetcher]], fault: Fault
) -> None:
    server, sources = odd_s3
    server.asked.clear()
    error = failure(sources["short"], f"s3://clips-bucket/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert server.asked == [f"/clips-bucket/clips/{fault.name}"]


@pytest.mark.parametrize("fault", S3_FAULTS, ids=by_name)
def test_each_fault_of_an_s3_endpoint_has_its_reason(
    odd_s3: tuple[OddServer, dict[str, Fetcher]], fault: Fault
) -> None:
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
    wait_until(lambda: len(server.asked) >= len(threads), "all requests")
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
def test_an_environment_that_s3_cannot_use_is_reported_at_construction(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"S3 cannot be used with this environment: .*{value}"):
        s3_fetcher(operator("http://127.0.0.1:1") | {name: value}, "s3://clips-bucket/")


# -- Google Cloud Storage ----------------------------------------------------------------------------------

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


@pytest.mark.parametrize("fault", GS_FAULTS, ids=by_name)
def test_each_fault_of_a_gs_endpoint_has_its_reason(gs: Fetcher, fault: Fault) -> None:
    error = failure(gs, f"gs://clips-bucket/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail


def test_a_gs_object_is_read_by_its_key_as_it_stands(server: OddServer, gs: Fetcher, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        for key in ("clips/a.mp4", "clips/a%20?b#1/a.mp4", "clips//Ü/a.mp4"):
            assert content(gs, f"gs://clips-bucket/{key}") == CLIP
        failure(gs, "gs://clips-bucket/clips/404")
    asked = [unquote(path.removeprefix("/download/storage/v1/b/clips-bucket/o/")) for path in server.asked]
    assert asked[:3] == ["clips/a.mp4?alt=media", "clips/a%20?b#1/a.mp4?alt=media", "clips//Ü/a.mp4?alt=media"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
