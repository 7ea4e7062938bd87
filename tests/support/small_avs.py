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
    from streamer.encoders import Encoder
    from streamer.store import Store

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
    for number in range(CLIPS):
        clip, whole = _clip(number, encoder, store)
        clips.append(clip)
        wholes.append(whole)
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


def _clip(number: int, encoder: Encoder, store: Store) -> tuple[DemoClip, Any]:
    """Draw a clip's frames, store their vectors, and return the mean of them too."""
    rng = np.random.default_rng([SEED, number])
    scenes, frames = [], []
    length = FRAMES_A_SCENE * FRAME_MS
    for position in range(SCENES):
        scene = draw_scene(rng)
        renderer = SceneRenderer(scene, rng)
        frames += [encoder.prepare(renderer.frame(each * FRAME_MS / 1000)) for each in range(FRAMES_A_SCENE)]
        scenes.append(DemoScene(position * length, (position + 1) * length, scene, describe(scene, rng)))
    vectors = encoder.encode_images(frames)[:, 0]
    times = np.arange(len(frames), dtype=np.uint32) * np.uint32(FRAME_MS)
    clip_id = f"clip-{number:04d}"
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    store.put([Clip(clip_id, at, Position.of("log", number), len(frames) * FRAME_MS, vectors, times)])
    mean = vectors.mean(axis=0)
    return DemoClip(clip_id, Path(), tuple(scenes)), mean / np.linalg.norm(mean)


def events(benchmark: SmallBenchmark, engine: str) -> list[bytes]:
    """Return an engine's run as the events of ``query.results``."""
    run, topics = read_run(benchmark.folder / f"base-{engine}.run"), read_topics(benchmark.folder / "topics.tsv")
    return [JSON.encode(event) for event in questions_of(run, topics)]
