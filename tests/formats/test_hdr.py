"""Films of high dynamic range: patches as BT.2100 defines them, coded by three codecs, against sRGB values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.video import Sampling
from streamer.video.sampling import hdr
from streamer.video.sampling.sample import sample
from tests.formats.ffmpeg import make

if TYPE_CHECKING:
    from pathlib import Path

SRGB = np.array([[255, 255, 255], [60, 120, 220], [230, 140, 40], [40, 160, 60], [200, 40, 40], [128, 128, 128]])
SIDE = 32
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""From BT.709 (ITU-R BT.2087)."""
CODECS = {
    "hevc.mp4": "-c:v libx265 -preset veryfast -x265-params log-level=error:qp=8",
    "av1.mp4": "-c:v libaom-av1 -usage realtime -cpu-used 8 -crf 5",
    "vp9.webm": "-c:v libvpx-vp9 -profile:v 2 -deadline good -cpu-used 8 -crf 5 -b:v 0",
}
TRANSFERS = {"smpte2084": hdr.PQ, "arib-std-b67": hdr.HLG}


def linear(srgb: Any) -> Any:
    signal = np.asarray(srgb) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def pq(luminance: Any) -> Any:
    """The inverse EOTF of SMPTE ST 2084, with its constants as decimal numbers."""
    power = (luminance / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(luminance: Any) -> Any:
    """The OETF of BT.2100 after the inverse OOTF of a screen of 1,000 cd/m2."""
    shown = luminance / 1_000
    brightness = shown @ [0.2627, 0.6780, 0.0593]
    scene = shown * np.where(brightness > 0, brightness, 1)[..., None] ** (1 / 1.2 - 1)
    low = np.sqrt(3 * np.minimum(scene, 1 / 12))
    return np.where(scene <= 1 / 12, low, 0.17883277 * np.log(12 * np.maximum(scene, 1 / 12) - 0.28466892) + 0.55991073)


def write(path: Path, transfer: str, luminance: Any, codec: str) -> None:
    """Write a film of patches (6, 3) of these luminances in BT.2020, in limited-range YCbCr 4:2:0 of 10 bits."""
    red, green, blue = (pq if transfer == "smpte2084" else hlg)(luminance).T
    luma = 0.2627 * red + 0.678 * green + 0.0593 * blue
    planes = 64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746
    sizes = SIDE, SIDE // 2, SIDE // 2
    picture = [
        np.round(plane).reshape(2, 3).repeat(side, 0).repeat(side, 1).astype("<u2").tobytes()
        for plane, side in zip(planes, sizes, strict=True)
    ]
    raw = path.with_suffix(".yuv")
    raw.write_bytes(b"".join(picture) * 25)
    tags = f"-color_primaries bt2020 -color_trc {transfer} -colorspace bt2020nc -color_range tv".split()
    given = ("-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", f"{3 * SIDE}x{2 * SIDE}", "-r", "25")
    make(*given, *tags, "-i", raw, *codec.split(), "-pix_fmt", "yuv420p10le", *tags, path)


def patches(path: Path) -> Any:
    frame = sample(path, Sampling(0.5, 64), np.copy).frames[-1]
    return np.array([frame[SIDE * row + 16, SIDE * column + 16] for row in range(2) for column in range(3)], int)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("name", CODECS)
def test_patches_up_to_reference_white_are_what_a_screen_shows(name: str, transfer: str, tmp_path: Path) -> None:
    write(tmp_path / name, transfer, linear(SRGB) @ TO_2020.T * hdr.WHITE, CODECS[name])
    assert np.abs(patches(tmp_path / name) - SRGB).max() <= 4


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_highlights_are_compressed_and_what_is_dark_stays_as_it_is(transfer: str, tmp_path: Path) -> None:
    path = tmp_path / "highlights.mp4"
    grey = np.array([1_000.0, 600.0, 300.0, 60.0, 20.0, 2.0])
    write(path, transfer, grey[:, None].repeat(3, 1), CODECS["hevc.mp4"])
    found = patches(path)
    assert np.ptp(found, axis=1).max() <= 2
    brightness = found.mean(axis=1)
    assert brightness[0] >= 253
    assert (np.diff(brightness) < [0, -4, -4, -4, -4]).all()
    below_the_knee = linear(found[3:]).mean(axis=1) * hdr.WHITE
    assert below_the_knee == pytest.approx(grey[3:], rel=0.08)


@given(st.floats(204, 1_000))
def test_the_curve_rises_to_white_and_begins_as_it_is(peak: float) -> None:
    given = np.linspace(0, peak, 500)
    found = hdr.compressed(given, peak)
    assert (np.diff(found) >= -1e-9).all()
    assert found[-1] == pytest.approx(hdr.WHITE, rel=1e-6)
    assert (found <= given * (1 + 1e-9) + 1e-9).all()
    dark = given < 60
    assert found[dark] == pytest.approx(given[dark], rel=1e-6, abs=1e-6)


def test_any_signal_becomes_a_picture() -> None:
    rng = np.random.default_rng(1)
    for most in (1, 256, 40_000, 65_536):
        image = rng.integers(0, most, (9, 7, 3)).astype(np.uint16)
        for transfer in TRANSFERS.values():
            for primaries in (1, 2, 9, 11, 12):
                found = hdr.tone_mapped(image, transfer, primaries)
                assert found.shape == (9, 7, 3)
                assert found.dtype == np.uint8
    black = np.zeros((2, 2, 3), np.uint16)
    assert not hdr.tone_mapped(black, hdr.HLG, 9).any()
