"""How URIs and prefixes are read and compared. What is refused, with its reason, is in the hostile-URI suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from streamer.video.errors import ClipError
from streamer.video.fetching.uris import Prefixes, StoredObject, origin_of, parse


def stored(uri: str) -> StoredObject:
    found = parse(uri)
    assert isinstance(found, StoredObject)
    return found


def url(uri: str) -> URL:
    found = parse(uri)
    assert isinstance(found, URL)
    return found


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("file:/clips/a.mp4", Path("/clips/a.mp4")),
        ("FILE:///clips/a%20b.mp4", Path("/clips/a b.mp4")),
        ("https://cdn.example/clips/a.mp4?sig=1", URL("https://cdn.example/clips/a.mp4?sig=1")),
        ("s3://bucket/clips/a b.mp4", StoredObject("s3", "bucket", "clips/a b.mp4")),
        ("S3://bucket/100%/%2e%2e/a?versionId=1#2", StoredObject("s3", "bucket", "100%/%2e%2e/a?versionId=1#2")),
        ("s3://bucket//a//b/", StoredObject("s3", "bucket", "/a//b/")),
        ("s3://bucket", StoredObject("s3", "bucket", "")),
        ("gs://my_bucket.example.com/a", StoredObject("gs", "my_bucket.example.com", "a")),
    ],
)
def test_a_uri_has_one_reading(uri: str, source: object) -> None:
    assert parse(uri) == source


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        (
            "s3://bucket/clips",
            ["s3://bucket/clips/a", "s3://bucket/clips", "s3://bucket/clips//a", "s3://bucket/clips/"],
            ["s3://bucket/clips2/a", "s3://bucket/Clips/a", "s3://bucket//clips/a"],
        ),
        ("s3://bucket/clips/", ["s3://bucket/clips/a"], ["s3://Bucket/clips/a", "s3://bucket2/clips/a"]),
        ("s3://bucket/", ["s3://bucket/a", "s3://bucket//a", "s3://bucket/ "], ["gs://bucket/a", "s3://bucket/"]),
        ("s3://bucket", ["s3://bucket/a"], ["s3://bucket.example.com/a", "s3://bucket"]),
        ("s3://bucket/x//", ["s3://bucket/x//a"], ["s3://bucket/x/a"]),
        ("gs://bucket/x/", ["gs://bucket/x/a#1"], ["s3://bucket/x/a", "gs://bucket/y/a"]),
    ],
)
def test_objects_are_compared_by_bucket_and_by_segments_of_the_key(
    prefix: str, inside: list[str], outside: list[str]
) -> None:
    prefixes = Prefixes([prefix])
    for uri in inside:
        prefixes.check_object(stored(uri))
    for uri in outside:
        with pytest.raises(ClipError):
            prefixes.check_object(stored(uri))


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        (
            "https://CDN.example/clips",
            ["https://cdn.example/clips/a", "https://cdn.example:443/clips/a?q", "HTTPS://cdn.example/./clips//a"],
            ["http://cdn.example/clips/a", "https://cdn.example:444/clips/a", "https://cdn.example/clips2/a"],
        ),
        (
            "https://cdn.example",
            ["https://cdn.example/a", "https://cdn.example", "https://cdn\u3002example/a%3A%3Ab"],
            ["https://cdn.example./a", "https://cdn.example%2eevil.example/a"],
        ),
        ("http://bücher.example/", ["http://xn--bcher-kva.example/a"], ["http://bucher.example/a"]),
        ("http://[::1]:8080/", ["http://[::1]:8080/a"], ["http://[::1]/a", "http://[::2]:8080/a"]),
    ],
)
def test_urls_are_compared_by_origin_and_by_segments_of_the_path(
    prefix: str, inside: list[str], outside: list[str]
) -> None:
    prefixes = Prefixes([prefix])
    for uri in inside:
        prefixes.check_url(url(uri))
    for uri in outside:
        with pytest.raises(ClipError):
            prefixes.check_url(url(uri))


@pytest.mark.parametrize(
    "prefix",
    [
        "clips",
        "/clips",
        "file:clips",
        "file://host/clips",
        "http://",
        "https:///clips",
        "http://user:secret@host/",
        "http://host/clips?a=b",
        "http://host/clips#a",
        "http://host:port/",
        "http://127.1/",
        "ftp://host/",
        "s3:bucket/clips",
        "s3:/bucket/clips",
        "s3://",
        "s3:///clips",
        "s3://b/clips",
        "s3://key:secret@bucket/clips",
        "s3://bucket:9000/clips",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/clips",
        "s3://bucket/../clips",
        "s3a://bucket/clips",
        "gcs://bucket/clips",
        "",
    ],
)
def test_a_wrong_prefix_is_named(prefix: str) -> None:
    with pytest.raises(ValueError, match="is not a URI prefix: ") as caught:
        Prefixes(["file:/clips", prefix])
    assert repr(prefix) in str(caught.value)


@given(st.one_of(st.text(), st.from_regex(r"(file|https?|s3|gs)://?[^ ]*", fullmatch=True)))
def test_whatever_the_text_it_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        source = parse(text)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 - most texts are refused, and none must be
    else:
        assert isinstance(source, Path | URL | StoredObject)


@pytest.mark.parametrize(
    ("origin", "uris"),
    [
        (
            "https://cdn.example:443",
            ["https://cdn.example/a", "HTTPS://CDN.example:/b?q", "https://cdn.EXAMPLE:000443/c"],
        ),
        ("http://cdn.example:80", ["http://cdn.example", "http://cdn.example:0080/"]),
        ("http://::1:8080", ["http://[::1]:8080/a", "http://[0:0:0:0:0:0:0:1]:08080/a"]),
        ("s3://bucket", ["s3://bucket/a", "S3://bucket/b"]),
        ("file:", ["file:/a", "file:///b", "FILE://localhost/c"]),
    ],
)
def test_all_spellings_of_an_origin_are_one(origin: str, uris: list[str]) -> None:
    assert {origin_of(parse(uri)) for uri in uris} == {origin}
