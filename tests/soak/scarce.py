"""The heavy suite, `make scarce`: an embedder on a machine that runs short of something, under 200 uploads.

The service runs as an ordinary user, since root is not held to a limit of processes; the suite runs as root, since only
root makes file systems. Not collected by `make test`, which runs a short form (tests/integration/test_scarce.py).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.soak.soak import report
from tests.support import ordinary
from tests.support.driver import Bus, Service, apply_topics, environment
from tests.support.scarcity import (
    Clips,
    dying_template,
    endured,
    few_descriptors,
    few_processes,
    file_system,
    full,
    full_again_and_again,
    no_inodes,
    no_long_files,
    read_only,
    settings_of,
    uploads_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka
    from tests.support.scarcity import Shortage

pytestmark = pytest.mark.timeout(3_600)

UPLOADS = int(os.environ.get("UPLOADS", "200"))
SECONDS = float(os.environ.get("SECONDS", "300"))
SHORTER = min(45.0, SECONDS)
"""Seconds of the shortages that differ from another one only in their cause."""
NAMED_S, EMBEDDED_S = 5.0, 60.0
USER = 64_017
"""The limit of processes is one of all that a user has."""


class Case(NamedTuple):
    """A shortage, how long it lasts, and what /readyz must say of it."""

    made_of: Callable[[Path, Path], Shortage]
    """From the folders of downloads and of the store."""
    lacking: str
    hold: float
    options: str = "size=20m"
    condition: str = "machine"
    only_web: bool = True


CASES = {
    "downloads full": Case(lambda downloads, _: full(downloads), "disk", SECONDS),
    "few descriptors": Case(lambda *_: few_descriptors, "descriptors", SECONDS, only_web=False),
    "few processes": Case(lambda *_: few_processes, "processes", SECONDS, only_web=False),
    "downloads full again and again": Case(lambda downloads, _: full_again_and_again(downloads), "disk", SHORTER),
    "downloads without inodes": Case(lambda downloads, _: no_inodes(downloads), "disk", SHORTER, "nr_inodes=64"),
    "downloads read-only": Case(lambda downloads, _: read_only(downloads), "disk", SHORTER),
    "store full": Case(lambda _, store: full(store), "", SHORTER, condition="store"),
    "store full again and again": Case(
        lambda _, store: full_again_and_again(store), "", SHORTER, condition="store"
    ),
    "no long files": Case(lambda *_: no_long_files, "disk", SHORTER),
    "template dies": Case(lambda *_: dying_template, "processes", SHORTER, only_web=False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_machine_lacks_costs_no_upload(kafka: LocalKafka, topic_prefix: str, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    with ExitStack() as stack:
        folder = stack.enter_context(ordinary.open_folder())
        downloads, store, sources = (folder / each for each in ("downloads", "store", "sources"))
        for each in (downloads, store, sources):
            each.mkdir()
            each.chmod(0o777)
        for each in (downloads, store):
            stack.enter_context(file_system(each, case.options))
        clips = Clips(sources)
        clips.pause = 0.02
        stack.enter_context(clips.serving())
        variables = environment(bus, store, [], **settings_of(clips, downloads), HOME=str(folder))
        apply_topics(variables, tmp_path)
        service = stack.enter_context(
            Service("embed", variables, tmp_path, before=ordinary.becoming(USER)).await_ready(seconds=150)
        )
        course = endured(
            service,
            bus,
            case.made_of(downloads, store),
            uploads_of(clips, UPLOADS, name.replace(" ", "-"), only_web=case.only_web),
            hold=case.hold,
            condition=case.condition,
            lacking=case.lacking,
        )
        service.stop()
    report(f"{name}, {UPLOADS} uploads, {case.hold:g} s", course=str(course))
    assert course.named_after <= NAMED_S
    assert course.embedded_after <= EMBEDDED_S
