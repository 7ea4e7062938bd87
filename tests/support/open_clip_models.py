"""Small models with random weights of each architecture that open_clip has, and what the tests feed them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.preprocessing import Frame

CONTEXT = 77
END_OF_TEXT = 49407

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "context_length": 64, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
MULTIMODAL = {"context_length": 76, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
COCA_VIT = {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
COCA_TEXT = {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True}


class Kind(NamedTuple):
    """An architecture of open_clip, and whether its text tower may stop at the end of the text."""

    config: dict[str, Any]
    runs_short: bool


def _config(vision: dict[str, Any], text: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **extra}


KINDS = {
    "clip": Kind(_config(VIT, TEXT), runs_short=True),
    "clip-resnet-quickgelu": Kind(_config(RESNET, TEXT, quick_gelu=True), runs_short=True),
    "custom-text": Kind(_config(VIT, TEXT, custom_text=True), runs_short=True),
    "custom-text-eos": Kind(
        _config(VIT, {**TEXT, "pool_type": "eos", "eos_id": END_OF_TEXT, "proj_bias": True}, custom_text=True),
        runs_short=True,
    ),
    "no-projection": Kind(_config(VIT, {**TEXT, "width": 24, "proj_type": "none"}, custom_text=True), runs_short=True),
    "clip-not-causal": Kind(_config(VIT, {**TEXT, "no_causal_mask": True}), runs_short=False),
    "clip-pooled-last": Kind(_config(VIT, {**TEXT, "pool_type": "last"}), runs_short=False),
    "siglip": Kind(_config(VIT, SIGLIP_TEXT, custom_text=True, init_logit_bias=-10), runs_short=False),
    "class-token": Kind(
        _config(VIT, {**TEXT, "context_length": 76, "embed_cls": True}, custom_text=True), runs_short=False
    ),
    "coca": Kind(_config(COCA_VIT, COCA_TEXT, multimodal_cfg=MULTIMODAL, custom_text=True), runs_short=False),
}
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}

QUERIES = [
    "dog",
    "a man on a red bicycle",
    "",
    "Ein Zug fährt durch den Schnee, 雪の中の電車 🚂",
    "a <end_of_text> in the middle of a query",
    "a crowd of people waits at the station " * 40,
]


def make_model(directory: Path, kind: Kind, *, seed: int = 0) -> Path:
    """Write a model with random weights in open_clip's ``local-dir:`` layout."""
    directory.mkdir(parents=True)
    document = {"model_cfg": kind.config, "preprocess_cfg": PREPROCESSING}
    (directory / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(seed)
    network = open_clip.create_model(f"local-dir:{directory}")
    for parameter in network.parameters():
        # Fresh towers hardly look at their input; noise makes each position and each pixel count.
        parameter.data += 0.1 * torch.randn_like(parameter)
    # Values that float16 holds exactly, so that files of either precision carry the same weights.
    weights = {name: tensor.half().float() for name, tensor in network.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    return directory


def make_frames() -> list[Frame]:
    """Return noise in several shapes, (height, width, 3) uint8."""
    rng = np.random.default_rng(7)
    shapes = [(48, 64, 3), (64, 48, 3), (32, 32, 3), (7, 200, 3), (240, 320, 3)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a model's weights after ``change`` has changed them in place."""
    path = directory / "open_clip_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def change_preprocessing(directory: Path, **changes: Any) -> None:
    """Rewrite a model's configuration with other values of its preprocessing."""
    path = directory / "open_clip_config.json"
    document = json.loads(path.read_text())
    document["preprocess_cfg"].update(changes)
    path.write_text(json.dumps(document, indent=1))
