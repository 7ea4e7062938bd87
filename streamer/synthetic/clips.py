"""The demo's clips and queries: several scenes per clip, one moment per query, relevance from the attributes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.synthetic.render import SceneRenderer, in_processes
from streamer.synthetic.scenes import Scene, describe, draw_scene, loosen, satisfies
from streamer.synthetic.write import write_h264

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FPS = 12
_SCENES = (4, 8)
"""Number of scenes per clip, as a half-open range."""
_SCENE_FRAMES = (12, 31)
"""Number of frames per scene, likewise: 1 to 2.5 seconds."""
_MAX_RELEVANT_SHARE = 0.1
"""Queries that match a larger share of the clips are rejected, because they do not search for a moment."""
_TRIES_PER_QUERY = 50
_CLIP_STREAM, _QUERY_STREAM = 1, 2
"""Separate streams of random numbers under one seed."""


@dataclass(frozen=True, slots=True)
class DemoScene:
    """One scene of a clip, from its first frame's time to the next scene's; the cut between them is hard."""

    start_ms: int
    end_ms: int
    scene: Scene
    caption: str


@dataclass(frozen=True, slots=True)
class DemoClip:
    """One rendered file and what it shows."""

    clip_id: str
    path: Path
    scenes: tuple[DemoScene, ...]


@dataclass(frozen=True, slots=True)
class DemoQuery:
    """One request for a moment.

    ``moments``: for each relevant clip, by id, the (start_ms, end_ms) of the scenes that satisfy the request.
    """

    query_id: str
    text: str
    wanted: Scene
    moments: Mapping[str, tuple[tuple[int, int], ...]]

    @property
    def relevant(self) -> frozenset[str]:
        """The ids of the clips that contain such a moment."""
        return frozenset(self.moments)


def render_clips(folder: Path, *, count: int, seed: int) -> list[DemoClip]:
    """Render ``count`` clips as H.264 files into ``folder``, in several processes.

    The same seed gives the same clips whatever their number: a longer list begins with the shorter one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return in_processes(partial(_render_clip, folder, seed), count)


def _render_clip(folder: Path, seed: int, number: int) -> DemoClip:
    rng = np.random.default_rng([seed, _CLIP_STREAM, number])
    clip_id = f"clip-{number:04d}"
    scenes = []
    frames = 0
    lengths = [int(length) for length in rng.integers(*_SCENE_FRAMES, size=rng.integers(*_SCENES))]
    for length in lengths:
        scene = draw_scene(rng)
        start, frames = frames, frames + length
        scenes.append(DemoScene(_ms(start), _ms(frames), scene, describe(scene, rng)))
    path = folder / f"{clip_id}.mp4"
    write_h264(path, _frames(scenes, lengths, rng), fps=FPS)
    return DemoClip(clip_id, path, tuple(scenes))


def _ms(frame: int) -> int:
    return round(frame * 1000 / FPS)


def _frames(
    scenes: Sequence[DemoScene], lengths: Sequence[int], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.uint8]]:
    for each, length in zip(scenes, lengths, strict=True):
        renderer = SceneRenderer(each.scene, rng)
        for frame in range(length):
            yield renderer.frame(frame / FPS)


def make_queries(clips: Sequence[DemoClip], *, count: int, seed: int) -> list[DemoQuery]:
    """Draw ``count`` different requests, each for a scene of some clip, and judge every clip for each.

    Raises :class:`ValueError` if the clips do not have so many different requests.
    """
    rng = np.random.default_rng([seed, _QUERY_STREAM])
    most = max(1, round(_MAX_RELEVANT_SHARE * len(clips)))
    chosen: dict[Scene, DemoQuery] = {}
    for _ in range(_TRIES_PER_QUERY * count):
        if len(chosen) == count:
            break
        clip = clips[int(rng.integers(len(clips)))]
        wanted = loosen(clip.scenes[int(rng.integers(len(clip.scenes)))].scene, rng)
        moments = judge(clips, wanted)
        if wanted not in chosen and len(moments) <= most:
            text = describe(wanted, rng)
            chosen[wanted] = DemoQuery(f"query-{len(chosen):03d}", text, wanted, moments)
    if len(chosen) < count:
        raise ValueError(f"{len(clips)} clips have only {len(chosen)} different requests, not {count}")
    return list(chosen.values())


def judge(clips: Sequence[DemoClip], wanted: Scene) -> dict[str, tuple[tuple[int, int], ...]]:
    """Find the moments, (start_ms, end_ms), that satisfy a description, by the ids of the clips that contain any."""
    moments = {
        clip.clip_id: tuple((each.start_ms, each.end_ms) for each in clip.scenes if satisfies(each.scene, wanted))
        for clip in clips
    }
    return {clip_id: found for clip_id, found in moments.items() if found}
