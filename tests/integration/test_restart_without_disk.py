"""An embedder that is started while its temporary folder cannot be used: it waits for it, and no upload is given up.

The cases that need a file system of their own are for root; a folder that is missing, and one that is a file, are for
any user.
"""

from __future__ import annotations

import http.client
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support.driver import EMBEDDED, UPLOADED, Bus, Service, apply_topics, environment
from tests.support.load import Metrics
from tests.support.scarcity import (
    Clips,
    asked,
    file_system,
    full,
    no_inodes,
    read_only,
    settings_of,
    uploads_of,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka
    from tests.support.scarcity import Shortage

_UPLOADS = 5


class Case(NamedTuple):
    """What is wrong with the folder, and how the file system of its own is mounted, if it has one."""

    unusable: Callable[[Path], Callable[[Any], AbstractContextManager[None]]]
    options: str | None = None


def _missing(folder: Path) -> Shortage:
    @contextmanager
    def shortage(_: object) -> Iterator[None]:
        folder.rmdir()
        try:
            yield
        finally:
            folder.mkdir()

    return shortage


def _a_file(folder: Path) -> Shortage:
    @contextmanager
    def shortage(_: object) -> Iterator[None]:
        folder.rmdir()
        folder.touch()
        try:
            yield
        finally:
            folder.unlink()
            folder.mkdir()

    return shortage


CASES = {
    "missing": Case(_missing),
    "a file": Case(_a_file),
    "full": Case(full, "size=20m"),
    "without inodes": Case(no_inodes, "nr_inodes=64"),
    "read-only": Case(read_only, "size=20m"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_service_that_starts_without_room_for_downloads_waits_and_says_so(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, name: str
) -> None:
    unusable, options = CASES[name]
    if options is not None and os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    sources, downloads = tmp_path / "sources", tmp_path / "downloads"
    for each in (sources, downloads):
        each.mkdir()
    bus, clips = Bus(kafka.bootstrap_servers, topic_prefix), Clips(sources)
    variables = environment(bus, tmp_path / "store", [], **settings_of(clips, downloads))
    apply_topics(variables, tmp_path)
    uploads = uploads_of(clips, _UPLOADS, "clip")
    bus.publish(UPLOADED, uploads)
    with ExitStack() as stack:
        stack.enter_context(clips.serving())
        if options is not None:
            stack.enter_context(file_system(downloads, options))
        with unusable(downloads)(None):
            service = stack.enter_context(Service("embed", variables, tmp_path))
            wait_until(lambda: _named(service), "/readyz to name the disk", seconds=150, alive=[service])
            assert asked(service, "/livez") == (http.client.OK, ["ok"])
            assert bus.read(EMBEDDED) == []
        wait_until(
            lambda: len(bus.read(EMBEDDED)) >= _UPLOADS or bus.read(f"{UPLOADED}.dlq"),
            "all to be embedded", seconds=120, pause=0.5, alive=[service],
        )  # fmt: skip
        assert [letter.header("dlq.reason") for letter in bus.read(f"{UPLOADED}.dlq")] == []
        assert {record.event["clip_id"] for record in bus.read(EMBEDDED)} == {each.event["clip_id"] for each in uploads}
        wait_until(lambda: asked(service, "/readyz")[0] == http.client.OK, "to be ready again", alive=[service])
        assert Metrics(service).total("streamer_machine_faults_total", lack="disk") > 0
        assert "Traceback" not in service.log()
        service.stop()


def _named(service: Service) -> bool:
    status, lines = asked(service, "/readyz")
    return status == http.client.SERVICE_UNAVAILABLE and any(line.startswith("machine: disk") for line in lines)
