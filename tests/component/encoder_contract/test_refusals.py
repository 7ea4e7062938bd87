"""Models that cannot be loaded, and the one line that says why."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import open_clip
import pytest
import torch

from streamer.encoders import EncoderError, load_encoder
from streamer.encoders.model_config import require_allowed
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


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("model_cfg.wings: 2", {"wings": 2}),
    ("model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code: True", {"tokenizer_kwargs": {"trust_remote_code": True}}),
    (
        "model_cfg.text_cfg.tokenizer_kwargs.reduction_mask: 'syntax'",
        {"tokenizer_kwargs": {"reduction_mask": "syntax"}},
    ),
    ("model_cfg.text_cfg.tokenizer_kwargs.bpe_path: '/dev/zero'", {"tokenizer_kwargs": {"bpe_path": "/dev/zero"}}),
    ("model_cfg.text_cfg.tokenizer_kwargs.cache_dir: '/tmp'", {"tokenizer_kwargs": {"cache_dir": "/tmp"}}),  # noqa: S108
    ("model_cfg.text_cfg.tokenizer_kwargs.clean: 'unheard-of'", {"tokenizer_kwargs": {"clean": "unheard-of"}}),
    ("model_cfg.text_cfg.tokenizer_kwargs: 'x'", {"tokenizer_kwargs": "x"}),
    ("model_cfg.text_cfg.hf_model_name: './here'", {"hf_model_name": "./here"}),
    ("model_cfg.text_cfg.hf_model_name: 'someone/else'", {"hf_model_name": "someone/else"}),
    ("model_cfg.text_cfg.width: 'wide'", {"width": "wide"}),
    ("model_cfg.vision_cfg.timm_model_name: 'hf-hub:someone/else'", {"timm_model_name": "hf-hub:someone/else"}),
    ("model_cfg.vision_cfg.timm_model_name: 'local-dir:/a'", {"timm_model_name": "local-dir:/a"}),
    ("model_cfg.vision_cfg.act_kwargs: {'a': {'b': 1}}", {"act_kwargs": {"a": {"b": 1}}}),
    ("model_cfg.text_cfg: 7", {"text_cfg": 7}),
]


@pytest.mark.parametrize(("said", "changes"), HOSTILE, ids=[said for said, _ in HOSTILE])
def test_a_config_that_says_more_than_it_may_is_refused_before_anything_is_loaded(
    clip_copy: Path, monkeypatch: pytest.MonkeyPatch, said: str, changes: dict[str, Any]
) -> None:
    config: dict[str, Any] = {**KINDS["clip"].config}
    section = said.split(":", maxsplit=1)[0].split(".")[1]
    if section.endswith("_cfg") and section not in changes:
        config[section] = {**config[section], **changes}
    else:
        config |= changes
    (clip_copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    monkeypatch.delattr(open_clip, "create_model_from_pretrained")
    assert refusal(f"local-dir:{clip_copy}") == f"model local-dir:{clip_copy}: its configuration may not say {said}"


def test_a_config_that_is_no_architecture_is_refused(clip_copy: Path) -> None:
    document = {"model_cfg": {**KINDS["clip"].config, "text_cfg": {**TEXT, "heads": 7}}}
    (clip_copy / "open_clip_config.json").write_text(json.dumps(document))
    assert refusal(f"local-dir:{clip_copy}").startswith(f"model local-dir:{clip_copy} cannot be built: ")


def test_the_configs_of_open_clip_say_nothing_that_a_folder_may_not() -> None:
    for name in open_clip.list_models():
        require_allowed(name, open_clip.get_model_config(name))


def test_a_tokenizer_of_another_library_is_told_to_run_no_code(
    clip_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_tokenizer(*_: object, **options: object) -> None:
        raise RuntimeError(f"told {options}")

    config = {**KINDS["clip"].config, "text_cfg": {**TEXT, "hf_tokenizer_name": "any"}}
    (clip_copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    monkeypatch.setattr(open_clip, "get_tokenizer", get_tokenizer)
    assert refusal(f"local-dir:{clip_copy}").endswith("told {'trust_remote_code': False}")


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


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.usefixtures("_offline")
def test_a_repository_that_cannot_be_downloaded_is_refused() -> None:
    model = f"hf-hub:someone/something@{COMMIT}"
    assert refusal(model).startswith(f"model {model} cannot be downloaded: ")


@pytest.mark.parametrize("revision", ["", "@", "@main", f"@{COMMIT[:7]}", f"@{COMMIT}0"])
def test_a_repository_without_its_commit_is_refused(revision: str) -> None:
    message = refusal(f"hf-hub:someone/something{revision}")
    assert message.endswith("name the commit, hf-hub:someone/something@ and its 40 hexadecimal digits")


def test_of_a_repository_only_that_commit_is_read_and_none_of_its_code(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def snapshot_download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        files = ("evil.py", "a/evil.py", "pytorch_model.bin", "open_clip_config.json", "open_clip_model.safetensors")
        wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in allow_patterns)]
        assert wanted == ["open_clip_config.json", "open_clip_model.safetensors"]
        return str(models("clip"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    encoder = load_encoder(f"hf-hub:someone/something@{COMMIT}", dtype="float32")
    assert asked == [("someone/something", COMMIT)]
    assert encoder.model_id == load_encoder(f"local-dir:{models('clip')}", dtype="float32").model_id


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
