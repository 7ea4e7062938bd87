"""Frames for ``streamer explain``: fetched by the embedder's rules, and decoded in its sandbox."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from streamer.explain.pictures import NO_PREFIX, Pictures
from streamer.settings import ExplainSettings, SettingsError, load
from tests.support.footage import BLUE, RED, write_video

if TYPE_CHECKING:
    from pathlib import Path


def settings(folder: Path | None) -> ExplainSettings:
    allowed = {} if folder is None else {"allowed_uris": json.dumps([f"file:{folder}"])}
    return load(allowed, command=ExplainSettings)


def test_the_frame_of_a_moment_is_shown_or_the_reason_why_not(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    frames = [np.full((120, 300, 3), colour, np.uint8) for colour in [RED] * 10 + [BLUE] * 10]
    path = write_video(clips / "a.mp4", frames, 10)
    (clips / "broken.mp4").write_bytes(b"no video")
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(path.read_bytes())
    with Pictures(settings(clips)) as pictures:
        for moment, colour in ((500, RED), (1500, BLUE)):
            shown = pictures.at(f"file:{path}", moment)
            assert (shown.why, shown.moment_ms, shown.origin) == (None, moment, "file:")
            assert (shown.width, shown.height) == (220, 88)
            assert shown.uri is not None
            kind, _, encoded = shown.uri.partition(",")
            assert kind == "data:image/jpeg;base64"
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
            assert pixels.shape == (88, 220, 3)
            assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - colour).max() < 20
        missing = pictures.at(f"file:{path}", 777).why
        assert missing is not None
        assert missing.startswith("the clip has no sampled frame at 0.777 s now")
        for uri, reason in (
            (f"file:{clips / 'none.mp4'}", "not_found: "),
            (f"file:{clips / 'broken.mp4'}", "decode_failed: "),
            (f"file:{outside}", "uri_refused: "),
            ("javascript:alert(1)", "uri_refused: "),
        ):
            why = pictures.at(uri, 0).why
            assert why is not None
            assert why.startswith(reason), why
    with Pictures(settings(None)) as pictures:
        assert pictures.at(f"file:{path}", 0).why == NO_PREFIX


def test_a_prefix_that_cannot_be_used_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="allowed_uris"):
        Pictures(load({"allowed_uris": '["ftp://host/"]'}, command=ExplainSettings))
