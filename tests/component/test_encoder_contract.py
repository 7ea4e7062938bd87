"""One contract for every encoder, run on small models of each architecture that open_clip has."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from streamer.encoders import DEMO, EncoderError, load_encoder
from streamer.encoders import open_clip as open_clip_encoder
from streamer.encoders.loading import DEMO_FOLDER
from streamer.encoders.open_clip import MAX_TOKENIZER_WORDS, OpenClipEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.preprocessing import Frame

CONTEXT = 77
END_OF_TEXT = 49407
TOLERANCE = 1e-5

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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which leaves nothing to measure
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.exists() else make_model(directory, KINDS[name])

    return get


class Subject(NamedTuple):
    """An encoder and, beside it, the same model run by open_clip alone."""

    encoder: OpenClipEncoder
    plain: Any
    preprocess: Any
    tokenizer: Any
    runs_short: bool

    def plain_texts(self, queries: list[str]) -> np.ndarray[Any, Any]:
        tokens = self.tokenizer(queries).to(self.encoder.device)
        with torch.inference_mode():
            return np.asarray(self.plain.encode_text(tokens, normalize=True).cpu())

    def plain_images(self, frames: list[Frame]) -> np.ndarray[Any, Any]:
        batch = torch.stack([self.preprocess(Image.fromarray(frame)) for frame in frames])
        with torch.inference_mode():
            return np.asarray(self.plain.encode_image(batch.to(self.encoder.device), normalize=True).cpu())


def load_subject(model: str, *, runs_short: bool) -> Subject:
    encoder = OpenClipEncoder.load(model, dtype="float32")
    plain, _, preprocess = open_clip.create_model_and_transforms(model)
    plain = plain.eval().to(encoder.device)
    return Subject(encoder, plain, preprocess, open_clip.get_tokenizer(model), runs_short)


@pytest.fixture(scope="module", params=[*KINDS, DEMO])
def subject(request: pytest.FixtureRequest, models: Callable[[str], Path]) -> Subject:
    if request.param == DEMO:
        return load_subject(f"local-dir:{DEMO_FOLDER}", runs_short=True)
    return load_subject(f"local-dir:{models(request.param)}", runs_short=KINDS[request.param].runs_short)


def make_frames() -> list[Frame]:
    rng = np.random.default_rng(7)
    shapes = [(48, 64, 3), (64, 48, 3), (32, 32, 3), (7, 200, 3), (240, 320, 3)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def text_lengths(subject: Subject, queries: list[str]) -> list[int]:
    """Encode ``queries`` and return the sequence lengths that the text tower's first block saw."""
    texts = subject.encoder._texts
    assert texts is not None
    network = texts.network
    tower = network if isinstance(network, open_clip.CLIP) else network.text
    # A class token, where there is one, stands behind the text.
    appended = 0 if getattr(tower, "cls_emb", None) is None else 1
    seen: list[int] = []

    def see(_block: object, args: tuple[torch.Tensor, ...], _kwargs: dict[str, Any]) -> None:
        seen.append(args[0].shape[1] - appended)

    hook = tower.transformer.resblocks[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        subject.encoder.encode_texts(queries)
    finally:
        hook.remove()
    return seen


def test_vectors_have_the_promised_shape_type_and_norm(subject: Subject) -> None:
    encoder, frames = subject.encoder, make_frames()
    images = encoder.encode_images([encoder.prepare(frame) for frame in frames])
    texts = encoder.encode_texts(QUERIES)
    assert images.shape == (len(frames), encoder.vectors_per_frame, encoder.dim)
    assert texts.shape == (len(QUERIES), encoder.dim)
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, atol=TOLERANCE)
    assert re.fullmatch(rf"clip{encoder.dim}-[0-9a-f]{{16}}", encoder.model_id)


def test_images_equal_plain_open_clip(subject: Subject) -> None:
    encoder, frames = subject.encoder, make_frames()
    images = encoder.encode_images([encoder.prepare(frame) for frame in frames])
    np.testing.assert_allclose(images[:, 0], subject.plain_images(frames), atol=TOLERANCE)


def test_texts_equal_plain_open_clip(subject: Subject) -> None:
    texts = subject.encoder.encode_texts(QUERIES)
    np.testing.assert_allclose(texts, subject.plain_texts(QUERIES), atol=TOLERANCE)
    # The queries differ enough for a wrong position or mask to show.
    assert np.abs(texts[0] - texts[1]).max() > 1e-3


@given(queries=st.lists(st.text(max_size=120), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_texts_of_any_unicode_equal_plain_open_clip(subject: Subject, queries: list[str]) -> None:
    encoded = subject.encoder.encode_texts(queries)
    np.testing.assert_allclose(encoded, subject.plain_texts(queries), atol=TOLERANCE)


def test_a_batch_gives_what_its_items_give_one_by_one(subject: Subject) -> None:
    encoder = subject.encoder
    prepared = [encoder.prepare(frame) for frame in make_frames()]
    one_by_one = np.concatenate([encoder.encode_images([item]) for item in prepared])
    np.testing.assert_allclose(encoder.encode_images(prepared), one_by_one, atol=TOLERANCE)
    one_by_one = np.concatenate([encoder.encode_texts([query]) for query in QUERIES])
    np.testing.assert_allclose(encoder.encode_texts(QUERIES), one_by_one, atol=TOLERANCE)


def test_text_runs_at_its_own_length_where_the_tower_allows_it(subject: Subject) -> None:
    context = subject.tokenizer.context_length
    # Start, one token each for "a", "red" and "bicycle", end.
    assert text_lengths(subject, ["a red bicycle"]) == [5] if subject.runs_short else [context]
    assert text_lengths(subject, ["dog", "a red bicycle"]) == [5] if subject.runs_short else [context]
    # The longest query fills the context.
    assert text_lengths(subject, QUERIES) == [context]


def test_frames_are_prepared_alike_in_any_thread(subject: Subject) -> None:
    frames = make_frames() * 4
    expected = [subject.preprocess(Image.fromarray(frame)) for frame in frames]
    images = subject.encoder._images
    assert images is not None
    with ThreadPoolExecutor(4) as pool:
        for prepared, wanted in zip(pool.map(subject.encoder.prepare, frames), expected, strict=True):
            batch = torch.from_numpy(prepared[np.newaxis].copy()).to(subject.encoder.device)
            pixels = images.normalise(batch)[0].cpu()
            # CUDA multiplies by 1 / 255.
            torch.testing.assert_close(pixels, wanted, rtol=0, atol=0 if batch.is_cpu else 1e-6)


def test_the_model_is_not_in_training_mode(subject: Subject) -> None:
    for tower in (subject.encoder._images, subject.encoder._texts):
        assert tower is not None
        assert not any(module.training for module in tower.network.modules())


def model_id(directory: Path, dtype: Any = "float32") -> str:
    return OpenClipEncoder.load(f"local-dir:{directory}", dtype=dtype).model_id


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = directory / "open_clip_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def change_preprocessing(directory: Path, **changes: Any) -> None:
    path = directory / "open_clip_config.json"
    document = json.loads(path.read_text())
    document["preprocess_cfg"].update(changes)
    path.write_text(json.dumps(document, indent=1))


@pytest.fixture
def clip_copy(models: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models("clip"), tmp_path / "copy"))


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


@pytest.fixture
def registered(tmp_path: Path) -> str:
    """Return the name of a small architecture among open_clip's built-in ones."""
    path = tmp_path / "tiny-registered.json"
    path.write_text(json.dumps(KINDS["clip"].config))
    open_clip.add_model_config(path)
    return "tiny-registered"


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["clip", "clip-resnet-quickgelu", "siglip", "coca"])
def test_reduced_arithmetic_stays_close_to_float32(models: Callable[[str], Path], kind: str, dtype: Any) -> None:
    exact = OpenClipEncoder.load(f"local-dir:{models(kind)}", dtype="float32")
    reduced = OpenClipEncoder.load(f"local-dir:{models(kind)}", dtype=dtype)
    prepared = [exact.prepare(frame) for frame in make_frames()]
    images = np.sum(exact.encode_images(prepared) * reduced.encode_images(prepared), axis=-1)
    texts = np.sum(exact.encode_texts(QUERIES) * reduced.encode_texts(QUERIES), axis=-1)
    assert min(images.min(), texts.min()) > 0.995


def test_the_tokenizer_does_not_remember_every_word_it_saw(models: Callable[[str], Path]) -> None:
    model = f"local-dir:{models('clip')}"
    encoder = OpenClipEncoder.load(model)
    tokenizer = open_clip.get_tokenizer(model)
    bounded = open_clip_encoder._bound(tokenizer)
    special_tokens = dict(tokenizer.cache)
    tokenizer.cache.update({f"word{number}": f"word{number}" for number in range(MAX_TOKENIZER_WORDS)})
    tokens = bounded(QUERIES)
    assert len(tokenizer.cache) < 200
    assert special_tokens.items() <= tokenizer.cache.items()
    assert encoder._texts is not None
    assert torch.equal(tokens, encoder._texts._tokenize(QUERIES))


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


def test_a_name_like_no_other_is_refused() -> None:
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
    assert "open_clip_config.json is no JSON object with a model_cfg" in message


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
