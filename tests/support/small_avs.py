"""The synthetic benchmark, small and quick: its clips are a few rendered frames that were never a file."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.codec import JSON
from streamer.encoders import DEMO, load_encoder
from streamer.evaluation.questions import questions_of
from streamer.evaluation.trec import read_run, read_topics
from streamer.settings import load
from streamer.store import Clip, Position, open_store
from streamer.synthetic import avs, benchmark
from streamer.synthetic.clips import DemoClip, DemoScene
from streamer.synthetic.render import SceneRenderer
from streamer.synthetic.scenes import describe, draw_scene

if TYPE_CHECKING:
    import numpy.typing as npt

    from streamer.encoders import Encoder

    FloatArray = npt.NDArray[np.float32]

CLIPS, TOPICS, SEED = 40, 20, 3
SCENES, FRAME_MS = 3, 500
FRAMES_A_SCENE = 2


@dataclass(frozen=True)
class SmallBenchmark:
    """Where it is: ``store``, and in ``folder`` the files of ``streamer benchmark``."""

    folder: Path
    store: str
    model_id: str
    results: dict[str, Any]


def make(folder: Path) -> SmallBenchmark:
    """Make it, with the model's arithmetic in float32."""
    encoder = load_encoder(DEMO, dtype="float32", threads=1)
    url = f"lmdb:{folder / 'store'}"
    store = open_store(url, model_id=encoder.model_id, dim=encoder.dim)
    clips, wholes = [], []
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for number in range(CLIPS):
        clip, vectors = draw(number, encoder)
        times = np.arange(len(vectors), dtype=np.uint32) * np.uint32(FRAME_MS)
        position = Position.of("log", number)
        store.put([Clip(clip.clip_id, at, position, len(vectors) * FRAME_MS, vectors, times)])
        clips.append(clip)
        wholes.append(whole(vectors))
    topics = avs.draw_topics(clips, count=TOPICS, seed=SEED)
    answers = {}
    for topic in topics:
        cosines = np.array(wholes) @ encoder.encode_texts([topic.text])[0]
        answers[topic.query_id] = [(clip.clip_id, float(cosine)) for clip, cosine in zip(clips, cosines, strict=True)]
    size = benchmark.Size(CLIPS, TOPICS, SEED)
    method = replace(load({}).method, depth=benchmark.DEPTH)
    results = benchmark.measure(method, topics, answers, encoder, store, size, folder)
    store.close()
    return SmallBenchmark(folder, url, encoder.model_id, results)


def draw(number: int, encoder: Encoder) -> tuple[DemoClip, FloatArray]:
    """Draw a clip's frames, and return it with their vectors (frames, d)."""
    rng = np.random.default_rng([SEED, number])
    scenes, frames = [], []
    length = FRAMES_A_SCENE * FRAME_MS
    for position in range(SCENES):
        scene = draw_scene(rng)
        renderer = SceneRenderer(scene, rng)
        frames += [encoder.prepare(renderer.frame(each * FRAME_MS / 1000)) for each in range(FRAMES_A_SCENE)]
        scenes.append(DemoScene(position * length, (position + 1) * length, scene, describe(scene, rng)))
    return DemoClip(f"clip-{number:04d}", Path(), tuple(scenes)), encoder.encode_images(frames)[:, 0]


def whole(vectors: FloatArray) -> FloatArray:
    """Return the one vector (d,) that the stand-in engine has for a clip."""
    mean = vectors.mean(axis=0)
    found: FloatArray = mean / np.linalg.norm(mean)
    return found


def events(benchmark: SmallBenchmark, engine: str) -> list[bytes]:
    """Return an engine's run as the events of ``query.results``."""
    run, topics = read_run(benchmark.folder / f"base-{engine}.run"), read_topics(benchmark.folder / "topics.tsv")
    return [JSON.encode(event) for event in questions_of(run, topics)]
