"""An embedder on a machine that runs short of something: `make scarce` in short, as any user.

One service goes through the shortages that need no file system of its own, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.driver import Bus, Service, apply_topics, environment
from tests.support.scarcity import (
    Clips,
    dying_template,
    endured,
    few_descriptors,
    no_long_files,
    settings_of,
    uploads_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

_UPLOADS, _HOLD_S = 30, 2.0
SHORTAGES = {
    "descriptors": (few_descriptors, "descriptors"),
    "files": (no_long_files, "disk"),
    "template": (dying_template, "processes"),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # a thread makes the shortage
def test_what_a_machine_lacks_for_a_while_costs_no_upload(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    sources, downloads = tmp_path / "sources", tmp_path / "downloads"
    for each in (sources, downloads):
        each.mkdir()
    bus, clips = Bus(kafka.bootstrap_servers, topic_prefix), Clips(sources)
    clips.pause = 0.01
    variables = environment(bus, tmp_path / "store", [], **settings_of(clips, downloads))
    apply_topics(variables, tmp_path)
    with clips.serving(), Service("embed", variables, tmp_path) as service:
        service.await_ready(seconds=150)
        for name, (shortage, lacking) in SHORTAGES.items():
            uploads = uploads_of(clips, _UPLOADS, name, only_web=name == "files")
            endured(service, bus, shortage, uploads, hold=_HOLD_S, lacking=lacking)
        service.stop()
