"""How an encoder's arithmetic, threads and device are chosen, and what that must not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import pytest
import structlog
import torch

from streamer.encoders import DEMO, EncoderError, load_encoder
from streamer.encoders.open_clip import OpenClipEncoder
from streamer.encoders.towers import ImageTower, PackedMlp, PackedSelfAttention, TextTower, can_pack, part_of
from streamer.encoders.tuning import (
    MIN_COSINE,
    Arithmetic,
    batch_size,
    candidates,
    fastest,
    thread_count,
    use_threads,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
FLOAT32, BFLOAT16, FLOAT16 = (Arithmetic(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
PACKED_FLOAT32, PACKED_BFLOAT16 = (Arithmetic(dtype, packed=True) for dtype in (torch.float32, torch.bfloat16))
QUERIES = ["dog", "a man on a red bicycle", "a crowd of people waits at the station " * 40]


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    with use_threads(torch.get_num_threads()):
        yield


# -- the choice --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tower:
    """Takes a time that is given, and its vectors lie at an angle that is given to those of the first."""

    def __init__(self, clock: Clock, seconds: float, cosine: float = 1.0) -> None:
        self._clock, self._seconds = clock, seconds
        self._vector = np.array([[cosine, np.sqrt(1 - cosine**2)]], np.float32)

    def run(self) -> None:
        self._clock.now += self._seconds

    def vectors(self) -> Any:
        return self._vector


def choose(**towers: tuple[float, float] | None) -> str:
    """Return what is chosen among arithmetics with these seconds and cosines, the first one first."""
    clock = Clock()
    named = {"f32": FLOAT32, "f32p": PACKED_FLOAT32, "bf16": BFLOAT16, "bf16p": PACKED_BFLOAT16, "f16": FLOAT16}
    names = {named[name]: name for name in towers}

    def build(arithmetic: Arithmetic) -> Tower:
        figures = towers[names[arithmetic]]
        if figures is None:
            raise RuntimeError("not implemented for 'BFloat16'")
        return Tower(clock, *figures)

    choice = fastest(list(names), build, clock)
    assert isinstance(choice.tower, Tower)
    assert [trial.arithmetic for trial in choice.trials] == list(names)
    return names[choice.arithmetic]


def test_the_fastest_accurate_arithmetic_is_chosen() -> None:
    assert choose(f32=(1.0, 1.0), bf16p=(0.3, 0.9999), f32p=(0.6, 1.0), bf16=(0.4, 0.9999)) == "bf16p"


def test_inaccurate_arithmetic_is_not_chosen_however_fast() -> None:
    assert choose(f32=(1.0, 1.0), bf16p=(0.1, MIN_COSINE - 1e-5), f32p=(0.6, 1.0)) == "f32p"


def test_noise_does_not_decide_against_float32() -> None:
    assert choose(f32=(0.010, 1.0), bf16=(0.009, 0.9999)) == "f32"
    assert choose(f32=(0.010, 1.0), bf16p=(0.0075, 0.9999), f32p=(0.008, 1.0)) == "f32p"
    assert choose(f32=(0.010, 1.0), f32p=(0.0098, 1.0)) == "f32"


def test_bfloat16_is_preferred_to_float16_of_about_the_same_speed() -> None:
    assert choose(f32=(0.010, 1.0), bf16=(0.005, 0.9999), f16=(0.0049, 0.99999)) == "bf16"


def test_what_cannot_run_is_not_chosen() -> None:
    assert choose(f32=(1.0, 1.0), bf16p=None, f32p=(0.5, 1.0), bf16=None) == "f32p"


def test_an_arithmetic_that_cannot_run_is_an_error_when_requested() -> None:
    with pytest.raises(RuntimeError, match="not implemented"):
        choose(bf16=None)


def test_a_long_candidate_runs_once_and_a_short_one_several_times() -> None:
    clock = Clock()
    runs: list[Arithmetic] = []

    class Counting(Tower):
        def __init__(self, arithmetic: Arithmetic) -> None:
            super().__init__(clock, 3.0 if arithmetic == FLOAT32 else 0.001)
            self._arithmetic = arithmetic

        def run(self) -> None:
            runs.append(self._arithmetic)
            super().run()

    fastest([FLOAT32, BFLOAT16], Counting, clock)
    assert runs.count(FLOAT32) == 1
    assert 3 <= runs.count(BFLOAT16) <= 20


@pytest.mark.parametrize("packable", [True, False])
def test_auto_tries_float32_first_on_a_processor(*, packable: bool) -> None:
    found = candidates("auto", CPU, packable=packable)
    assert found[0] == FLOAT32
    assert set(found[1:]) <= {BFLOAT16, PACKED_BFLOAT16, PACKED_FLOAT32}
    assert (PACKED_FLOAT32 in found) == packable


def test_a_requested_dtype_is_the_only_one_tried() -> None:
    assert candidates("bfloat16", CPU, packable=True) == (BFLOAT16, PACKED_BFLOAT16)
    assert candidates("float32", CPU, packable=True) == (FLOAT32,)
    assert candidates("float16", CUDA, packable=True) == (FLOAT16,)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_on_cuda_tries_what_the_device_has(monkeypatch: pytest.MonkeyPatch, *, has_bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_kwargs: has_bfloat16)
    expected = (FLOAT32, BFLOAT16, FLOAT16) if has_bfloat16 else (FLOAT32, FLOAT16)
    assert candidates("auto", CUDA, packable=False) == expected


# -- threads -----------------------------------------------------------------------------------------------


def test_threads_are_taken_as_long_as_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("streamer.encoders.tuning.time.perf_counter", clock)
    seconds = {1: 1.0, 2: 0.6, 4: 0.4, 6: 0.39}

    def run() -> None:
        clock.now += seconds[torch.get_num_threads()]

    before = torch.get_num_threads()
    assert thread_count(run, 6) == 4
    assert thread_count(run, 2) == 2
    assert thread_count(run, 1) == 1
    assert torch.get_num_threads() == before


def test_batches_grow_as_long_as_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("streamer.encoders.tuning.time.perf_counter", clock)
    seconds = {32: 1.0, 64: 1.1, 128: 1.9, 256: 3.7, 300: 4.0}

    def run(size: int) -> None:
        clock.now += seconds[size]

    assert batch_size(run, 32, 512) == 128
    assert batch_size(run, 32, 64) == 64
    assert batch_size(run, 256, 300) == 256


def test_threads_that_are_set_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    load_encoder(DEMO, dtype="float32", threads=3, sides=["texts"])
    assert torch.get_num_threads() == 3


def test_the_variable_of_openmp_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(OpenClipEncoder, "measure_threads", lambda _self: pytest.fail("measured all the same"))
    with use_threads(2):
        load_encoder(DEMO, dtype="float32", sides=["texts"])
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_let_others_run(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "from streamer.encoders.openmp import spin_briefly; spin_briefly(); import torch"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


# -- what is loaded ----------------------------------------------------------------------------------------


def test_only_the_side_that_is_wanted_is_measured_and_kept() -> None:
    with structlog.testing.capture_logs() as logs:
        encoder = load_encoder(DEMO, sides=["texts"])
    assert encoder.encode_texts(QUERIES).shape == (len(QUERIES), encoder.dim)
    measured = [line for line in logs if line["event"] == "precision measured"]
    assert [line["side"] for line in measured] == ["texts"]
    assert measured[0]["measured"][0].startswith("float32: ")
    assert measured[0]["chosen"] in {trial.split(":")[0] for trial in measured[0]["measured"]}
    frame = np.full((70, 50, 3), 99, np.uint8)
    with pytest.raises(RuntimeError, match="without its image side"):
        encoder.encode_images([encoder.prepare(frame)])


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EncoderError) as caught:
        load_encoder(DEMO, device="cuda")
    assert caught.value.setting == "device"


# -- packed weights ----------------------------------------------------------------------------------------

PACKED = PACKED_BFLOAT16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else PACKED_FLOAT32
"""The packed arithmetic of the lowest precision that this processor has."""
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 2}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
PREPROCESSING = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module", params=["clip", "quick-gelu", "layer-scale", "custom-text"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config: dict[str, Any] = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT}
    config |= {"quick_gelu": request.param == "quick-gelu", "custom_text": request.param == "custom-text"}
    if request.param == "layer-scale":
        config["vision_cfg"] = {**VIT, "ls_init_value": 0.1}
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(3)
    made = open_clip.create_model(f"local-dir:{folder}").eval()
    for parameter in made.parameters():
        # Fresh towers hardly look at their input; noise makes each position and each pixel count.
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert can_pack(made)
    return made


def encoded(network: Any, arithmetic: Arithmetic) -> tuple[Any, Any]:
    """Return the vectors of a few images and texts."""
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    tokenizer = open_clip.SimpleTokenizer()
    images = ImageTower(network, PREPROCESSING, arithmetic, CPU).encode(frames)
    return images, TextTower(network, tokenizer, arithmetic, CPU).encode(QUERIES)


def test_packed_weights_give_the_same_vectors(network: Any) -> None:
    for packed, plain in zip(encoded(network, PACKED_FLOAT32), encoded(network, FLOAT32), strict=True):
        np.testing.assert_allclose(packed, plain, atol=1e-5)
        assert all(np.abs(one - other).max() > 1e-3 for one, other in pairwise(plain))


def test_packed_bfloat16_is_at_least_as_accurate_as_plain_or_refused_by_the_processor(network: Any) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(RuntimeError, match="bf16"):
            encoded(network, PACKED_BFLOAT16)
        return
    exact, packed, plain = (encoded(network, each) for each in (FLOAT32, PACKED_BFLOAT16, BFLOAT16))
    for right, mine, theirs in zip(exact, packed, plain, strict=True):
        error_of_mine, error_of_theirs = (1 - np.sum(right * vectors, axis=-1).min() for vectors in (mine, theirs))
        assert error_of_mine < max(1.5 * error_of_theirs, 1e-5)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_a_part_has_only_its_side_of_the_model_and_does_not_change_the_model(network: Any, side: Any) -> None:
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in network.state_dict().items()}
    part = part_of(network, side, PACKED, CPU)
    assert (part.visual is None) == (side == "texts")
    replaced = [module for module in part.modules() if isinstance(module, PackedMlp | PackedSelfAttention)]
    assert len(replaced) == 4
    # Nothing of the plain matrices is left in it.
    assert not any(name.endswith(("in_proj_weight", "c_proj.weight")) for name, _ in part.named_parameters())
    assert {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in network.state_dict().items()} == before


def test_a_plain_float32_part_takes_no_memory_of_its_own(network: Any) -> None:
    part = part_of(network, "images", FLOAT32, CPU)
    own = {parameter.data_ptr() for parameter in part.parameters()}
    assert own <= {parameter.data_ptr() for parameter in network.parameters()}
