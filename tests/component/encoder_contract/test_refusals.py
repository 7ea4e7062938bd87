"""Models that cannot be loaded, and the one line that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import open_clip
import pytest
import torch

from streamer.encoders import EncoderError, load_encoder
from tests.support.open_clip_models import KINDS, TEXT, change_weights

if TYPE_CHECKING:
    from collections.abc import Callable


def refusal(model: str, pretrained: str | None = None, dtype: Any = "float32") -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(model, pretrained, dtype=dtype)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def test_an_unknown_name_is_refused_with_close_ones() -> None:
    message = refusal("ViT-B32", "openai")
    assert message.startswith("unknown model 'ViT-B32'; did you mean ")
    assert "ViT-B-32" in message


def test_a_model_name_without_close_matches_is_refused() -> None:
    assert refusal("%%%%", "openai").startswith("unknown model '%%%%'; open_clip.list_models()")


def test_an_unknown_tag_is_refused_with_those_there_are() -> None:
    message = refusal("ViT-B-32", "openay")
    assert message.startswith("unknown tag 'openay' for model ViT-B-32; give a checkpoint file or")
    assert "openai, laion400m_e31" in message


def test_a_model_without_tags_says_so(registered: str) -> None:
    assert refusal(registered, "openai").endswith("give a checkpoint file (there are no tags)")


@pytest.mark.parametrize("pretrained", [None, ""])
def test_random_weights_are_refused(pretrained: str | None) -> None:
    message = refusal("ViT-B/32", pretrained)
    assert message.startswith("model ViT-B-32 needs pretrained weights: give a checkpoint file or")


@pytest.mark.parametrize("pretrained", ["missing/weights.pt", "weights.safetensors", "/"])
def test_a_missing_checkpoint_is_refused(registered: str, pretrained: str) -> None:
    assert refusal(registered, pretrained) == f"{pretrained!r}: no such checkpoint file"


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"], ids=["empty", "text"])
def test_an_unreadable_checkpoint_is_refused(registered: str, tmp_path: Path, name: str, content: bytes) -> None:
    checkpoint = tmp_path / name
    checkpoint.write_bytes(content)
    assert refusal(registered, str(checkpoint)).startswith(f"checkpoint {checkpoint} cannot be read: ")


def test_a_checkpoint_that_carries_code_is_not_run(registered: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    checkpoint = tmp_path / "weights.pt"
    torch.save({"state_dict": Bomb()}, checkpoint)
    assert "cannot be read" in refusal(registered, str(checkpoint))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["siglip", "coca", "clip-resnet-quickgelu"])
def test_weights_of_another_architecture_are_refused(registered: str, models: Callable[[str], Path], kind: str) -> None:
    message = refusal(registered, str(models(kind) / "open_clip_model.safetensors"))
    assert message.startswith("the weights do not fit model tiny-registered: ")


def test_incomplete_weights_are_refused(clip_copy: Path) -> None:
    change_weights(clip_copy, lambda weights: weights.__delitem__("text_projection"))
    message = refusal(f"local-dir:{clip_copy}")
    assert message.startswith(f"the weights do not fit model local-dir:{clip_copy}: CLIP: Missing key(s)")
    assert "text_projection" in message


def test_a_truncated_file_in_a_directory_is_named(clip_copy: Path) -> None:
    checkpoint = clip_copy / "open_clip_model.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert refusal(f"local-dir:{clip_copy}").startswith(f"checkpoint {checkpoint} cannot be read: ")


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    model = f"local-dir:{tmp_path / 'missing'}"
    assert refusal(model) == f"model {model}: no such directory"


def test_a_directory_without_a_name_is_refused() -> None:
    assert refusal("local-dir:").startswith("model local-dir:: Empty path")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("open_clip_config.json", "the directory has no open_clip_config.json"),
        ("open_clip_model.safetensors", "the directory has no weights (.safetensors, .bin, .pth)"),
    ],
)
def test_an_incomplete_directory_is_refused(clip_copy: Path, name: str, problem: str) -> None:
    (clip_copy / name).unlink()
    assert refusal(f"local-dir:{clip_copy}") == f"model local-dir:{clip_copy}: {problem}"


@pytest.mark.parametrize("content", ["{", "[]", '{"vision_cfg": {}}', "\udcff"])
def test_a_broken_config_is_refused(clip_copy: Path, content: str) -> None:
    (clip_copy / "open_clip_config.json").write_text(content, errors="surrogateescape")
    message = refusal(f"local-dir:{clip_copy}")
    assert "open_clip_config.json is not a JSON object with a model_cfg" in message


def test_a_config_that_is_no_architecture_is_refused(clip_copy: Path) -> None:
    document = {"model_cfg": {**KINDS["clip"].config, "wings": 2}}
    (clip_copy / "open_clip_config.json").write_text(json.dumps(document))
    message = refusal(f"local-dir:{clip_copy}")
    assert message.startswith(f"model local-dir:{clip_copy} cannot be built: TypeError: ")
    assert "wings" in message


def test_a_missing_tokenizer_is_named(clip_copy: Path) -> None:
    config = {**KINDS["clip"].config, "text_cfg": {**TEXT, "tokenizer_kwargs": {"clean": "unheard-of"}}}
    (clip_copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert refusal(f"local-dir:{clip_copy}").startswith(f"model local-dir:{clip_copy} has no usable tokenizer: ")


def test_a_tag_beside_a_directory_is_refused_rather_than_ignored(models: Callable[[str], Path]) -> None:
    message = refusal(f"local-dir:{models('clip')}", "openai")
    assert message.startswith("pretrained 'openai' cannot be combined with model local-dir:")


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("_offline")
def test_a_tag_whose_weights_cannot_be_downloaded_is_refused() -> None:
    message = refusal("ViT-B-32", "openai")
    assert message.startswith("'openai' of model ViT-B-32 cannot be downloaded: ")


@pytest.mark.usefixtures("_offline")
def test_a_repository_that_cannot_be_downloaded_is_refused() -> None:
    assert refusal("hf-hub:someone/something").startswith("model hf-hub:someone/something cannot be downloaded: ")


def test_arithmetic_that_overflows_is_refused_and_named(clip_copy: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["text_projection"] *= 1e6

    change_weights(clip_copy, enlarge)
    model = f"local-dir:{clip_copy}"
    load_encoder(model, dtype="float32")
    assert refusal(model, dtype="float16") == "the model's vectors are not finite with dtype float16"


def test_an_operation_that_the_arithmetic_lacks_is_refused_and_named(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(_network: object, _image: object) -> None:
        raise RuntimeError("\"conv\" not implemented for 'Half'")

    monkeypatch.setattr(open_clip.CLIP, "encode_image", lack)
    message = refusal(f"local-dir:{models('clip')}", dtype="float16")
    assert "does not run with dtype float16 on " in message
    assert message.endswith("\"conv\" not implemented for 'Half'")
