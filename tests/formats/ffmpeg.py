"""The ffmpeg program: the encoder of the matrix, and the reference decoder."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Rgb = npt.NDArray[np.uint8]

_TICK = re.compile(r"config in time_base: (\d+)/(\d+)")
_FRAME = re.compile(r" pts: *(-?\d+|NOPTS) .*?duration: *(\d+) .*? s:(\d+)x(\d+) ")


def run(arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)


def make(*arguments: str | Path) -> None:
    done = run(("-loglevel", "error", *arguments))
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace')[-500:]}"


@dataclass
class Shown:
    """What the program shows: times in seconds, durations, RGB frames; in the order in which they come."""

    times: list[Fraction]
    durations: list[Fraction]
    frames: list[Rgb]


def show(path: Path, stream: str) -> Shown:
    """Decode one stream frame by frame, upright, without any frame doubled or left out."""
    done = run(
        # One thread, as damage is concealed from other frames where frames are decoded side by side; times as they
        # are in the file; sizes as they are where they change; times in ticks, in the log.
        [
            *("-loglevel", "info", "-copyts", "-threads", "1", "-i", path, "-map", stream, "-noautoscale"),
            *("-fps_mode", "passthrough", "-vf", "showinfo=checksum=0", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"),
        ]
    )
    times: list[Fraction] = []
    durations: list[Fraction] = []
    frames: list[Rgb] = []
    tick = Fraction(0)
    at = 0
    for line in done.stderr.decode(errors="replace").splitlines():
        if "showinfo" not in line:
            continue
        if found := _TICK.search(line):
            tick = Fraction(int(found[1]), int(found[2]))
        elif found := _FRAME.search(line):
            assert found[1] != "NOPTS", "the program gives every frame a time"
            width, height = int(found[3]), int(found[4])
            pixels = np.frombuffer(done.stdout, np.uint8, width * height * 3, at)
            at += pixels.size
            times.append(int(found[1]) * tick)
            durations.append(int(found[2]) * tick)
            # The program turns the frames before this filter, so the size is the upright one.
            frames.append(pixels.reshape(height, width, 3))
    assert at == len(done.stdout), "every frame's pixels have been told apart"
    return Shown(times, durations, frames)


def psnr(one: Rgb, other: Rgb) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
