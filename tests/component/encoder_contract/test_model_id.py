"""What a model's id depends on, and what it does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from streamer.encoders import load_encoder
from streamer.encoders.open_clip import OpenClipEncoder
from tests.support.open_clip_models import QUERIES, change_preprocessing, change_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def model_id(directory: Path, dtype: Any = "float32") -> str:
    return OpenClipEncoder.load(f"local-dir:{directory}", dtype=dtype).model_id


def test_model_id_does_not_depend_on_the_path_or_the_layout_of_the_config(
    models: Callable[[str], Path], clip_copy: Path
) -> None:
    path = clip_copy / "open_clip_config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items())), indent=4, sort_keys=False))
    assert model_id(clip_copy) == model_id(models("clip"))


def test_model_id_does_not_depend_on_the_precision_of_the_file(models: Callable[[str], Path], clip_copy: Path) -> None:
    def halve(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: tensor.half() for name, tensor in weights.items()})

    change_weights(clip_copy, halve)
    assert model_id(clip_copy) == model_id(models("clip"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_model_id_does_not_depend_on_the_arithmetic(models: Callable[[str], Path], dtype: str) -> None:
    assert model_id(models("clip"), dtype) == model_id(models("clip"))


def test_the_last_bit_of_a_weight_makes_another_model(models: Callable[[str], Path], clip_copy: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weight = weights["text_projection"][3, 5]
        weight.copy_(torch.nextafter(weight, weight + 1))

    change_weights(clip_copy, change)
    assert model_id(clip_copy) != model_id(models("clip"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.5, 0.4, 0.31]},
        {"std": [0.21, 0.3, 0.4]},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_preprocessing_is_another_model(
    models: Callable[[str], Path], clip_copy: Path, changes: dict[str, Any]
) -> None:
    change_preprocessing(clip_copy, **changes)
    assert model_id(clip_copy) != model_id(models("clip"))


def test_another_activation_is_another_model(models: Callable[[str], Path], clip_copy: Path) -> None:
    path = clip_copy / "open_clip_config.json"
    document = json.loads(path.read_text())
    document["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(document))
    assert model_id(clip_copy) != model_id(models("clip"))


def test_name_and_checkpoint_give_the_model_that_the_directory_gives(
    registered: str, clip_copy: Path, tmp_path: Path
) -> None:
    weights = load_file(clip_copy / "open_clip_model.safetensors")
    # The layout of open_clip's own training checkpoints.
    trained = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": t for name, t in weights.items()}}, trained)
    defaults = open_clip.transform.PreprocessCfg()
    change_preprocessing(clip_copy, mean=defaults.mean, std=defaults.std, interpolation=defaults.interpolation)
    from_checkpoint = load_encoder(registered, str(trained), dtype="float32")
    from_directory = load_encoder(f"local-dir:{clip_copy}", dtype="float32")
    assert from_checkpoint.model_id == from_directory.model_id
    of_both = (from_checkpoint.encode_texts(QUERIES), from_directory.encode_texts(QUERIES))
    # Weights may be packed in one and not in the other, if that is about as fast.
    np.testing.assert_allclose(*of_both, atol=1e-6)
