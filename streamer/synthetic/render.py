"""From a scene's attributes to frames: objects that drift before a background, seen by a shaky, noisy camera."""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from streamer.synthetic.backgrounds import draw_background
from streamer.synthetic.objects import RGB, draw_object
from streamer.synthetic.scenes import COLOURS

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.synthetic.scenes import Item, Scene

T = TypeVar("T")

FRAME_SIZE = (240, 180)
"""Width and height of a rendered frame, in pixels."""

_MARGIN = 8
"""Pixels of background beyond each edge, for the camera's shake."""
_HEIGHTS = {"small": (0.22, 0.28), None: (0.42, 0.52), "large": (0.72, 0.84)}
"""Height of a lone object as a share of the frame's, by its size attribute."""
_HEIGHTS_OF_MANY = {2: (0.36, 0.44), 3: (0.32, 0.38)}
"""The same where several objects share the frame, by their number."""
_PLACES_TRIED = 24


@dataclass(frozen=True, slots=True)
class _Sprite:
    image: Image.Image
    start: tuple[float, float]
    """Centre at time 0, in pixels."""
    velocity: tuple[float, float]
    """In pixels a second."""
    bob: float
    swing: float
    """Amplitudes of the up-and-down motion, in pixels, and of the rotation, in degrees."""
    phase: float


class SceneRenderer:
    """One scene with all its chances drawn; frames can be taken at any time of it."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self._rng = rng
        width, height = FRAME_SIZE
        backdrop = draw_background(scene.background or "", rng, (width + 2 * _MARGIN, height + 2 * _MARGIN))
        _scatter_clutter(backdrop, rng)
        self._backdrop = backdrop
        self._sprites = self._cast(scene)
        self._light = rng.uniform(0.86, 1.12)
        self._shake = rng.uniform(0, 2 * math.pi, 2)
        noise = rng.normal(0, rng.uniform(2, 7), (height + 32, width + 32, 1)) + rng.normal(0, 1.5, 3)
        self._noise = noise.round().astype(np.int16)

    def _cast(self, scene: Scene) -> list[_Sprite]:
        rng, (width, height) = self._rng, FRAME_SIZE
        copies = [item for item in scene.items for _ in range(item.count)]
        bounds = _HEIGHTS[copies[0].size] if len(copies) == 1 else _HEIGHTS_OF_MANY[len(copies)]
        pixels = round(rng.uniform(*bounds) * height)
        # Motion stays within the slack that is left, so that no object leaves the frame.
        return [
            _Sprite(
                image=draw_object(item.object, _tint(item, rng), pixels, mirrored=rng.random() < 0.5),  # noqa: PLR2004
                start=place,
                velocity=(rng.uniform(-0.02, 0.02) * width, rng.uniform(-0.01, 0.01) * height),
                bob=rng.uniform(0, 0.02) * height,
                swing=rng.uniform(0, 9),
                phase=rng.uniform(0, 2 * math.pi),
            )
            for item, place in zip(copies, _places(rng, len(copies), pixels), strict=True)
        ]

    def centres(self) -> list[tuple[float, float]]:
        """Return each object's centre (x, y) at the scene's start, in pixels, in the order of the scene's items.

        They are off by the camera's shake and, after half a second, by the motion: by less than ten pixels together.
        """
        return [sprite.start for sprite in self._sprites]

    def frame(self, seconds: float) -> npt.NDArray[np.uint8]:
        """Render the frame at a time from the scene's start: (height, width, 3) RGB."""
        width, height = FRAME_SIZE
        image = self._backdrop.copy()
        for sprite in self._sprites:
            turn = 2 * math.pi * 0.4 * seconds + sprite.phase
            x = sprite.start[0] + sprite.velocity[0] * seconds + _MARGIN - sprite.image.width / 2
            y = sprite.start[1] + sprite.velocity[1] * seconds + _MARGIN - sprite.image.height / 2
            y += sprite.bob * math.sin(turn)
            # The fraction of a pixel goes into the rotation's resampling, so that slow motion does not stutter.
            turned = sprite.image.rotate(
                sprite.swing * math.sin(turn + 1),
                Image.Resampling.BILINEAR,
                translate=(x % 1, y % 1),  # type: ignore[arg-type]  # its matrix takes fractions
            )
            image.paste(turned, (math.floor(x), math.floor(y)), turned)
        dx, dy = (round(_MARGIN + 2.5 * math.sin(2.1 * seconds + phase)) for phase in self._shake)
        pixels = np.asarray(image.crop((dx, dy, dx + width, dy + height))).astype(np.float32) * self._light
        top, left = self._rng.integers(0, 33, 2)
        return (pixels + self._noise[top : top + height, left : left + width]).clip(0, 255).astype(np.uint8)


def _tint(item: Item, rng: np.random.Generator) -> RGB:
    red, green, blue = (int(np.clip(c + rng.normal(0, 9), 0, 255)) for c in COLOURS[item.colour or ""])
    return red, green, blue


def _places(rng: np.random.Generator, count: int, pixels: int) -> list[tuple[float, float]]:
    """Draw centres well inside the frame, as far apart as the best of some tries."""
    width, height = FRAME_SIZE
    reach = pixels * 0.55
    low, high = np.array([reach, reach]), np.array([width - reach, height - reach])
    tries = rng.uniform(low, np.maximum(low + 1, high), (_PLACES_TRIED, count, 2))
    gaps = np.linalg.norm(tries[:, :, None] - tries[:, None], axis=-1) + np.eye(count) * width
    chosen = tries[gaps.min(axis=(1, 2)).argmax()]
    return [(float(x), float(y)) for x, y in chosen]


def _scatter_clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Strew specks of any colour, which no caption mentions."""
    draw = ImageDraw.Draw(image, "RGBA")
    palette = list(COLOURS.values())
    for _ in range(int(rng.integers(4, 13))):
        x, y, r = rng.uniform(0, image.width), rng.uniform(0, image.height), rng.uniform(1.2, 3.6)
        colour = palette[rng.integers(len(palette))]
        draw.ellipse((x - r, y - r * rng.uniform(0.4, 1), x + r, y + r), fill=(*colour, int(rng.integers(90, 220))))


def in_processes(work: Callable[[int], T], count: int) -> list[T]:
    """Do ``work`` for the numbers from 0 to ``count`` - 1 on all cores, and return the results in their order."""
    workers = max(1, min(count, os.cpu_count() or 1))
    # Spawned, not forked: a fork of a process in which torch or librdkafka has run may hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, range(count), chunksize=max(1, min(32, count // (4 * workers)))))
