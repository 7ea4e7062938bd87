"""Single frames with captions: what the small model is trained on, and what it is examined with."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamer.synthetic.render import SceneRenderer, in_processes
from streamer.synthetic.scenes import Scene, describe, draw_scene, has_held_out, loosen

_JPEG_QUALITY = (30, 81)
"""A still goes through JPEG, whose blocks and lost colour detail resemble those of a video's frame."""
_SECONDS = 2.5
"""Longest time into the scene at which a frame is taken."""


@dataclass(frozen=True, slots=True)
class StillSet:
    """Which stills to draw.

    ``stream`` keeps the sets of one seed apart. ``held_out``: only scenes with a held-out pair, or only scenes
    without one. ``side``: frames are squeezed to this square, None leaves them as rendered.
    """

    seed: int
    stream: int
    held_out: bool
    captions: int = 1
    side: int | None = None


@dataclass(frozen=True, slots=True)
class Still:
    """A frame of a scene, (height, width, 3); what it shows; and descriptions of it, more or less complete."""

    scene: Scene
    caption: str
    frame: npt.NDArray[np.uint8]
    captions: list[str]


def draw_stills(which: StillSet, count: int) -> list[Still]:
    """Draw ``count`` scenes of a set, in several processes."""
    return in_processes(partial(_draw_still, which), count)


def _draw_still(which: StillSet, number: int) -> Still:
    rng = np.random.default_rng([which.seed, which.stream, number])
    scene = draw_scene(rng)
    while has_held_out(scene) != which.held_out:
        scene = draw_scene(rng)
    renderer = SceneRenderer(scene, rng)
    frame = _compress(renderer.frame(rng.uniform(0, _SECONDS)), which.side, rng)
    captions = [describe(loosen(scene, rng), rng) for _ in range(which.captions)]
    return Still(scene, describe(scene, rng), frame, captions)


def _compress(frame: npt.NDArray[np.uint8], side: int | None, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=int(rng.integers(*_JPEG_QUALITY)))
    picture = Image.open(buffer).convert("RGB")
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)
