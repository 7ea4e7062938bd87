"""The training loop, and the shipped model: its files, its card, and what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import pytest
import safetensors
import torch
from PIL import Image

from streamer.encoders import DEMO, Encoder, load_encoder
from streamer.encoders.loading import DEMO_FOLDER
from streamer.synthetic.stills import Still, StillSet, draw_stills
from training.evaluation import attribute_accuracy, recall, rerank_fresh_clips
from training.loop import Recipe, export, train
from training.train import CONFIG, RECIPE

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEMO_FOLDER
UNSEEN_SEED = 4242
TINY: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {**CONFIG["preprocess_cfg"], "size": 32},
}
TINY_RECIPE = Recipe(epochs=12, batch_size=8, learning_rate=1e-2, weight_decay=0.0, warmup_steps=4, label_weight=1.0)


def train_tiny(seed: int = 0) -> tuple[Any, list[float]]:
    """Train on plain colours; return the model and the losses."""
    colours = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (240, 240, 240)}
    images = np.array([np.full((32, 32, 3), rgb, np.uint8) for rgb in colours.values() for _ in range(4)])
    captions = [[f"a {name} wall", f"{name}"] for name in colours for _ in range(4)]
    labels = np.repeat(np.eye(4, dtype=np.float32), 4, axis=0)
    losses: list[float] = []

    def report(step: int, steps: int, loss: float) -> None:
        assert 0 < step <= steps == 24
        losses.append(loss)

    return train(TINY, images, captions, labels, TINY_RECIPE, seed=seed, threads=1, report=report), losses


def test_training_learns_and_its_seed_decides_every_weight() -> None:
    model, losses = train_tiny()
    again, _ = train_tiny()
    other, _ = train_tiny(seed=1)
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.2
    weights, repeated, different = (each.state_dict() for each in (model, again, other))
    assert all(torch.equal(weights[name], repeated[name]) for name in weights)
    assert not torch.equal(weights["text_projection"], different["text_projection"])


def test_an_exported_model_gives_the_vectors_of_the_trained_one(tmp_path: Path) -> None:
    model, _ = train_tiny()
    export(model, TINY, tmp_path)
    encoder = load_encoder(f"local-dir:{tmp_path}", dtype="float32")
    texts = ["a red wall", "white"]
    with torch.inference_mode():
        expected = model.encode_text(open_clip.SimpleTokenizer()(texts), normalize=True).numpy()
    assert encoder.dim == 16
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=5e-3)
    frame = np.full((50, 70, 3), (200, 20, 20), np.uint8)
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    prepared = encoder.prepare(frame)
    with torch.inference_mode():
        expected = model.encode_image(preprocess(Image.fromarray(frame))[None], normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images([prepared])[:, 0], expected, atol=5e-3)


def test_the_shipped_folder_is_small_and_in_float16() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16_000_000
    with safetensors.safe_open(FOLDER / "open_clip_model.safetensors", framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - not a dict
    assert kinds == {"F16", "I64"}


def test_the_shipped_model_is_the_one_that_the_script_would_train() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"batches of {RECIPE.batch_size}, {RECIPE.epochs} epochs" in card
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    expected = open_clip.CLIP(
        CONFIG["model_cfg"]["embed_dim"], CONFIG["model_cfg"]["vision_cfg"], CONFIG["model_cfg"]["text_cfg"]
    )
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes == {name: value.shape for name, value in expected.state_dict().items()}
    assert "size=[64, 64]" in str(preprocess) or "size=(64, 64)" in str(preprocess)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(DEMO, dtype="float32")


@pytest.fixture(scope="module", params=[False, True], ids=["seen pairs", "held-out pairs"])
def stills(request: pytest.FixtureRequest) -> list[Still]:
    return draw_stills(StillSet(UNSEEN_SEED, 77, held_out=request.param), 100)


def test_the_small_model_retrieves_unseen_captions_and_frames(encoder: Encoder, stills: list[Still]) -> None:
    for found in recall(encoder, stills, at=(1, 5)).values():
        assert found[1] > 0.8
        assert found[5] > 0.95


def test_the_small_model_distinguishes_attributes(encoder: Encoder, stills: list[Still]) -> None:
    accuracy = attribute_accuracy(encoder, stills)
    least = {"object": 0.7, "colour": 0.7, "count": 0.85, "size": 0.9, "background": 0.95}
    assert {name for name, share in least.items() if accuracy[name][0] < share} == set()


def test_reranking_new_clips_with_the_small_model_improves_on_the_engine(encoder: Encoder, tmp_path: Path) -> None:
    figures = rerank_fresh_clips(encoder, tmp_path, clips=40, queries=24, seed=UNSEEN_SEED)
    assert figures.before > figures.chance + 0.1
    assert figures.after > figures.before + 0.2
