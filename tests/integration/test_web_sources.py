"""http servers that misbehave in every way: each ends within its limits, and says what it was."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.video import ClipError, Sampling
from streamer.video.isolation.pool import DecodePool
from tests.support.footage import tiny_footage
from tests.support.misbehaviour import (
    DROPPED,
    FAILED_FOR_NOW,
    NEVER_DONE,
    SHORT_SILENCE_S,
    SHORT_TOTAL_S,
    STATUSES,
    TOO_LARGE,
    TOO_MUCH,
    WORDS,
    Fault,
    by_name,
    content,
    failure,
    fetcher,
    verdict,
)
from tests.support.odd_server import CLIP, OddServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[OddServer]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("fault", NEVER_DONE, ids=by_name)
def test_a_download_that_never_ends_is_abandoned_over_http(server: OddServer, fault: Fault) -> None:
    source = fetcher(server.origin, total=SHORT_TOTAL_S, silence=SHORT_SILENCE_S)
    error = failure(source, f"{server.origin}/clips/{fault.name}", within=SHORT_TOTAL_S)
    assert verdict(error) == fault.verdict, error.detail
    assert fault.words in error.detail
    assert len(server.asked) == 1


@pytest.mark.parametrize("fault", [*TOO_MUCH, *DROPPED, *WORDS, *STATUSES], ids=by_name)
def test_each_fault_of_an_http_server_has_its_reason(server: OddServer, fault: Fault) -> None:
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


def test_bytes_after_the_announced_length_belong_neither_to_the_clip_nor_to_the_next_response(
    server: OddServer,
) -> None:
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


def test_nothing_of_one_clip_is_sent_to_the_server_with_the_next(server: OddServer) -> None:
    origin = f"http://localhost:{server.port}"  # a name, since addresses get no cookies back in any case
    source = fetcher(origin)
    for _ in range(2):
        assert content(source, f"{origin}/clips/cookie") == CLIP


@pytest.mark.parametrize(("name", "version"), [("drops", '"v1"'), ("drops-dated", "Mon, 05 Jan 2026 10:00:00 GMT")])
def test_a_dropped_transfer_goes_on_where_it_ended(server: OddServer, name: str, version: str) -> None:
    assert content(fetcher(server.origin), f"{server.origin}/clips/{name}") == CLIP
    assert server.ranges == [(None, None), ("bytes=40000-", version), ("bytes=80000-", version)]


def test_a_drop_starts_over_when_its_source_was_replaced_meanwhile(server: OddServer) -> None:
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
