"""``python -m training.train --out DIR --seed 0``: train the small model, evaluate it, write its model card."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from streamer.encoders import load_encoder
from streamer.synthetic.scenes import OBJECTS, Scene
from streamer.synthetic.stills import StillSet, draw_stills
from training.card import Run, render_card
from training.evaluation import attribute_accuracy, recall, rerank_fresh_clips
from training.loop import Recipe, export, train

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
    },
    "preprocess_cfg": {
        "size": 64,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        # Resized to a square without cropping, so that the sides of a frame are kept.
        "resize_mode": "squash",
    },
}
"""A ModifiedResNet of 1.4 million parameters, and a text tower most of which is open_clip's vocabulary."""

RECIPE = Recipe(epochs=10, batch_size=128, learning_rate=2e-3, weight_decay=0.05, warmup_steps=80, label_weight=1.0)
SCENES, CAPTIONS_PER_SCENE = 20_000, 8
EVALUATED = 500
RERANKED_CLIPS, RERANKED_QUERIES, RERANKED_SEEDS = 120, 60, (1001, 1002, 1003)
_TRAIN, _SEEN, _HELD_OUT = 10, 11, 12
"""Streams of random numbers: no set of stills shares a scene's chances with another."""
_THREADS = 1
"""One thread, so that the weights do not depend on the number of cores; it also loses little on a busy machine."""
_STEPS_PER_LINE = 50


def _objects_shown(scene: Scene) -> list[bool]:
    shown = {item.object for item in scene.items}
    return [name in shown for name in OBJECTS]


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the model")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed")
def main(out: Path, seed: int) -> None:
    """Train the demo's small CLIP model on rendered scenes, and write it with a model card."""
    began = time.monotonic()
    side = CONFIG["preprocess_cfg"]["size"]
    stills = draw_stills(StillSet(seed, _TRAIN, held_out=False, captions=CAPTIONS_PER_SCENE, side=side), SCENES)
    rendered = time.monotonic()
    click.echo(f"{SCENES} scenes rendered in {rendered - began:.0f} s")

    def report(step: int, steps: int, loss: float) -> None:
        if step % _STEPS_PER_LINE == 0 or step == steps:
            click.echo(f"step {step}/{steps}, loss {loss:.3f}, {time.monotonic() - rendered:.0f} s")

    model = train(
        CONFIG,
        np.stack([still.frame for still in stills]),
        [still.captions for still in stills],
        np.array([_objects_shown(still.scene) for still in stills], dtype=np.float32),
        RECIPE,
        seed=seed,
        threads=_THREADS,
        report=report,
    )
    export(model, CONFIG, out)
    trained = time.monotonic()
    # Evaluated as it is used: float16 weights from the folder, through the service's encoder.
    encoder = load_encoder(f"local-dir:{out}", dtype="float32")
    evaluated = {
        "seen": draw_stills(StillSet(seed, _SEEN, held_out=False), EVALUATED),
        "held out": draw_stills(StillSet(seed, _HELD_OUT, held_out=True), EVALUATED),
    }
    with tempfile.TemporaryDirectory() as folder:
        reranked = {
            clips_seed: rerank_fresh_clips(
                encoder, Path(folder, str(clips_seed)), clips=RERANKED_CLIPS, queries=RERANKED_QUERIES, seed=clips_seed
            )
            for clips_seed in RERANKED_SEEDS
        }
    run = Run(
        seed=seed,
        recipe=RECIPE,
        scenes=SCENES,
        megabytes=sum(path.stat().st_size for path in out.glob("open_clip*")) / 1e6,
        render_seconds=rendered - began,
        train_seconds=trained - rendered,
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        evaluated=EVALUATED,
        recall={name: recall(encoder, each, at=(1, 5)) for name, each in evaluated.items()},
        accuracy={name: attribute_accuracy(encoder, each) for name, each in evaluated.items()},
        clips=RERANKED_CLIPS,
        queries=RERANKED_QUERIES,
        reranked=reranked,
    )
    (out / "README.md").write_text(render_card(run), encoding="utf-8")
    click.echo(f"The model and its card are in {out}; {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
