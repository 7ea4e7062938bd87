"""Contrastive training of a small open_clip model on a CPU, and its export as a ``local-dir:`` folder.

The captions of a batch can be distinguished by few attributes (background and colour suffice for most of a hundred), so
with the contrastive loss alone the image tower learns shapes slowly. A linear head that predicts a picture's labels,
and is discarded after training, gives this signal from the first step.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

_WEIGHTS_FILE = "open_clip_model.safetensors"
_CONFIG_FILE = "open_clip_config.json"
_CONTEXT = 77
"""open_clip's own context length, which the exported model keeps."""
_MAX_LOGIT_SCALE = math.log(100)
"""CLIP's bound on the learned temperature (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters of one training run.

    ``learning_rate`` is the peak, after the warm-up; ``label_weight`` that of the labels' loss beside CLIP's.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    label_weight: float


def train(
    config: dict[str, Any],
    images: npt.NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    labels: npt.NDArray[np.float32],
    recipe: Recipe,
    *,
    seed: int,
    threads: int,
    report: Callable[[int, int, float], None],
) -> nn.Module:
    """Train a model from scratch with CLIP's symmetric loss, and return it in eval mode.

    ``config``: the content of an ``open_clip_config.json``. ``images``: (n, side, side, 3), of the model's own
    size. ``captions``: for each image those that fit it, one of which is drawn each epoch. ``labels``: (n, k), 1
    where an image shows a thing and else 0, at least one 1 a row. ``report`` gets the step, the number of steps
    and the loss. The same inputs give the same weights on the same processor with the same number of threads.
    The arithmetic is bfloat16, which halves the time on processors that support it.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(seed)
    tokens, spans = _tokenize(captions)
    model = _build(config["model_cfg"], context=tokens.shape[1])
    visual = model.visual.to(memory_format=torch.channels_last)
    augment = _Augmentation(config["preprocess_cfg"])
    head = nn.Linear(config["model_cfg"]["embed_dim"], labels.shape[1])
    shares = torch.from_numpy(labels / labels.sum(axis=1, keepdims=True))
    decayed = [weights for weights in model.parameters() if weights.ndim > 1]
    plain = [weights for weights in model.parameters() if weights.ndim <= 1] + list(head.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    steps_per_epoch = len(images) // recipe.batch_size
    steps = recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warmup_steps))
    model.train()
    step = 0
    for _ in range(recipe.epochs):
        order = rng.permutation(len(images))[: steps_per_epoch * recipe.batch_size]
        for batch in order.reshape(steps_per_epoch, recipe.batch_size):
            chosen = np.array([rng.integers(*spans[i]) for i in batch])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                image_features = visual(augment(torch.from_numpy(images[batch])))
                text_features = model.encode_text(tokens[chosen])
            image_features = image_features.float()
            loss = _clip_loss(image_features, text_features.float(), model.logit_scale)
            loss += recipe.label_weight * F.cross_entropy(head(image_features), shares[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
            step += 1
            report(step, steps, loss.item())
    return _lengthen(model, config["model_cfg"])


def export(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write a trained model with float16 weights, as ``local-dir:FOLDER`` expects it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    safetensors.torch.save_file(weights, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors makes files readable by the owner only; a package's data must be readable by all users.
    (folder / _WEIGHTS_FILE).chmod(0o644)
    (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _build(model_config: dict[str, Any], *, context: int) -> Any:
    text = {**model_config["text_cfg"], "context_length": context}
    return open_clip.CLIP(model_config["embed_dim"], dict(model_config["vision_cfg"]), text)


def _tokenize(captions: Sequence[Sequence[str]]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Return all captions' tokens, no longer than the longest caption, and each image's span of rows."""
    flat = [caption for own in captions for caption in own]
    tokens = open_clip.SimpleTokenizer(context_length=_CONTEXT)(flat)
    longest = int((tokens != 0).sum(dim=1).max())
    ends = np.cumsum([len(own) for own in captions])
    spans = [(int(end) - len(own), int(end)) for end, own in zip(ends, captions, strict=True)]
    return tokens[:, :longest], spans


def _lengthen(model: nn.Module, model_config: dict[str, Any]) -> nn.Module:
    """Give a model that was trained with short texts the full context; a causal tower's results stay the same.

    Positions beyond the training captions keep their random initial values, so longer queries are not understood.
    """
    full = _build(model_config, context=_CONTEXT)
    state = model.state_dict()
    trained = state["positional_embedding"]
    state["positional_embedding"] = torch.cat([trained, full.positional_embedding.detach()[len(trained) :]])
    full.load_state_dict(state)
    eval_model: nn.Module = full.eval()
    return eval_model


def _rate(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak learning rate: a linear rise, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _clip_loss(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Compute the symmetric cross-entropy over a batch's similarities (Radford et al. 2021, figure 3)."""
    logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    targets = torch.arange(len(logits))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class _Augmentation:
    """Random mirroring, shift, zoom, contrast and brightness, then the model's normalisation."""

    def __init__(self, preprocess: dict[str, Any]) -> None:
        self._mean = torch.tensor(preprocess["mean"])[:, None, None]
        self._std = torch.tensor(preprocess["std"])[:, None, None]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        count = len(batch)
        images = batch.permute(0, 3, 1, 2).float() / 255
        zoom = torch.empty(count, 2).uniform_(0.88, 1.08)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = zoom[:, 0] * (torch.randint(0, 2, (count,)) * 2 - 1)
        theta[:, 1, 1] = zoom[:, 1]
        theta[:, :, 2] = torch.empty(count, 2).uniform_(-0.08, 0.08)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        gain = torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2)
        images = (images * gain + torch.empty(count, 1, 1, 1).uniform_(-0.08, 0.08)).clamp(0, 1)
        return ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
