"""What sources do wrong, what is to be said of it, and within which limits."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from streamer.events import Reason
from streamer.video import ClipError, Retry
from streamer.video.fetching.fetcher import Fetcher
from tests.support.odd_server import LOOPBACK

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
    Fault("drops-misplaced", FAILED, "http 206 is not a response with a body", asked=2),
    Fault("drops-at-once", FAILED_FOR_NOW, "payload"),
]
WORDS = [
    Fault("noise", FAILED_BY_CHANCE, "the response is not valid HTTP"),
    Fault("long-at-once", FAILED_BY_CHANCE, "the response is not valid HTTP"),
    Fault("strange-words", FAILED_FOR_NOW, "http 500: Internal Server Error"),
    Fault("gzip", FAILED, "the body is compressed (gzip)"),
    Fault("part", FAILED, "http 206 is not a response with a body"),
    Fault("round", FAILED, "too many redirects", asked=10),
    Fault("204", FAILED, "http 204 is not a response with a body"),
    Fault("304", FAILED, "http 304 is not a response with a body"),
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
