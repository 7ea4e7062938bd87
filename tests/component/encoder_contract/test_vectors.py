"""The vectors of every encoder: their form, and that they are those of open_clip alone."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamer.encoders import DEMO
from streamer.encoders.loading import DEMO_FOLDER
from streamer.encoders.open_clip import OpenClipEncoder
from tests.support.open_clip_models import KINDS, QUERIES, make_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.preprocessing import Frame

TOLERANCE = 1e-5


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["clip", "clip-resnet-quickgelu", "siglip", "coca"])
def test_reduced_arithmetic_stays_close_to_float32(models: Callable[[str], Path], kind: str, dtype: Any) -> None:
    exact = OpenClipEncoder.load(f"local-dir:{models(kind)}", dtype="float32")
    reduced = OpenClipEncoder.load(f"local-dir:{models(kind)}", dtype=dtype)
    prepared = [exact.prepare(frame) for frame in make_frames()]
    images = np.sum(exact.encode_images(prepared) * reduced.encode_images(prepared), axis=-1)
    texts = np.sum(exact.encode_texts(QUERIES) * reduced.encode_texts(QUERIES), axis=-1)
    assert min(images.min(), texts.min()) > 0.995
