"""The slow source is one origin in each of its spellings, and slow only when it is told to be."""

from __future__ import annotations

import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest

from streamer.video import ClipError
from streamer.video.fetching.fetcher import Fetcher
from tests.chaos.sources import NETWORKS, Sources
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(200))


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    with Sources(tmp_path, ["a.mp4"]) as sources:
        yield sources


def fetcher(sources: Sources) -> Fetcher:
    return Fetcher([sources.fast, sources.slow], allowed_networks=NETWORKS, max_bytes=1_000, timeout=60)


def test_all_spellings_are_one_origin_from_which_the_service_fetches(sources: Sources) -> None:
    service = fetcher(sources)
    spellings = sources.spellings()
    assert len(set(spellings)) > 5
    assert {service.origin(f"{each}/1/a.mp4") for each in spellings} == {service.origin(f"{sources.slow}/a.mp4")}
    assert service.origin(f"{sources.fast}/a.mp4") != service.origin(f"{sources.slow}/a.mp4")
    for each in (*spellings, sources.fast):
        with service.fetch(f"{each}/1/a.mp4") as path:
            assert path.read_bytes() == CONTENT


def test_strangers_are_refused(sources: Sources) -> None:
    for each in sources.strangers():
        with pytest.raises(ClipError) as refused:
            fetcher(sources).origin(f"{each}/a.mp4")
        assert refused.value.reason == "uri_refused"


def test_what_is_served_slowly_is_counted_and_complete_in_the_end(sources: Sources) -> None:
    got: list[bytes] = []

    def read(prefix: str) -> None:
        with urllib.request.urlopen(f"{prefix}/a.mp4", timeout=30) as response:  # noqa: S310 - ours
            got.append(response.read())

    with sources.slowed():
        readers = [threading.Thread(target=read, args=(f"{sources.slow}/{number}",)) for number in (1, 2, 2)]
        for reader in readers:
            reader.start()
        wait_until(lambda: sources.waiting() == {"1": 1, "2": 2}, seconds=10)
        read(sources.fast)
        assert got == [CONTENT]
    for reader in readers:
        reader.join()
    assert got == [CONTENT] * 4
    wait_until(lambda: not sources.waiting(), seconds=10)
