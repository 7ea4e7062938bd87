"""The places that one source of clips may take among those that are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from streamer.embedder import _WAITING_OF_ONE_ORIGIN
from streamer.machine import Lack, MachineError
from streamer.video.fetching.fetcher import Fetcher
from tests.support.embedding import Harness, reason

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.store import Store


@pytest.mark.parametrize("once", [LookupError("of our own"), MachineError(Lack.MEMORY, "none for now")])
def test_uploads_that_fail_or_wait_keep_no_place_of_their_source(
    tmp_path: Path, store: Store, red: Path, once: Exception
) -> None:
    harness = Harness(tmp_path, store)
    failed: set[str] = set()

    class FailingOnce(Fetcher):
        def fetch(self, uri: str) -> Any:
            if uri not in failed:
                failed.add(uri)
                raise once
            return super().fetch(uri)

    harness.embedder._fetcher = FailingOnce([tmp_path.as_uri()], max_bytes=1 << 24, timeout=5)
    count = 2 * (harness.embedder._settings.decode_workers + _WAITING_OF_ONE_ORIGIN)
    paths = [tmp_path / f"{number}.mp4" for number in range(count)]
    for path in paths:
        path.hardlink_to(red)
    with capture_logs():  # structlog's default prints locals, which other threads change meanwhile
        outputs = harness.run(*(harness.upload(path.stem, path) for path in paths))
    if isinstance(once, MachineError):
        assert {each.topic for (each,) in outputs} == {"clips.embedded"}
    else:
        assert {reason(each) for each in outputs} == {"internal"}


def test_the_encoder_is_warm_in_the_thread_that_encodes(tmp_path: Path, store: Store) -> None:
    """Its library keeps threads for each thread that calls it; they are there before the first upload."""
    assert Harness(tmp_path, store).encoder.warmed_in == ("encode-0",)
