"""The torch-free preprocessing against open_clip's own transform, to the byte."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from streamer.encoders import EncoderError
from streamer.encoders.open_clip import _preprocessing
from streamer.preprocessing import Preprocessing

SIDES = st.integers(1, 180)
CONFIGS = st.fixed_dictionaries(
    {
        "size": st.one_of(st.integers(8, 64), st.tuples(st.integers(8, 64), st.integers(8, 64))),
        "resize_mode": st.sampled_from(["shortest", "longest", "squash"]),
        "interpolation": st.sampled_from(["bicubic", "bilinear"]),
        "fill_color": st.sampled_from([0, 127]),
    }
)


def reference(config: dict[str, Any]) -> Any:
    """Return open_clip's transform for unnormalised values, which are bytes / 255."""
    return image_transform_v2(PreprocessCfg(**config, mean=(0.0,) * 3, std=(1.0,) * 3), is_train=False)


def mine(config: dict[str, Any]) -> Preprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(height, width, config["resize_mode"], config["interpolation"], config["fill_color"])


@given(config=CONFIGS, height=SIDES, width=SIDES, seed=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_every_frame_comes_out_as_open_clip_makes_it(
    config: dict[str, Any], height: int, width: int, seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    try:
        tensor = reference(config)(Image.fromarray(frame))
    except ValueError:  # a side that open_clip rounds to nothing
        assert mine(config)(frame).shape[2] == 3
        return
    wanted = np.rint(tensor.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    np.testing.assert_array_equal(mine(config)(frame), wanted)


def test_preprocessing_can_be_pickled_and_needs_no_torch() -> None:
    program = (
        "import pickle, sys, numpy;"
        f"made = pickle.loads({pickle.dumps(Preprocessing(8, 8))!r})(numpy.zeros((9, 20, 3), 'uint8'));"
        "assert made.shape == (8, 8, 3) and made.dtype == 'uint8';"
        "assert not {'torch', 'torchvision', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_transform_that_is_none_of_open_clips_is_refused_when_the_model_is_loaded() -> None:
    config = {"size": 16, "resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}
    described = {**config, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    _preprocessing(described, reference(config))
    with pytest.raises(EncoderError, match="preprocessing"):
        _preprocessing(described, reference({**config, "resize_mode": "squash"}))
