"""The two sides of an open_clip model, each with its own precision: bytes or text in, unit vectors out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from streamer.encoders.packing import can_pack, pack
from streamer.encoders.protocol import EncoderError
from streamer.encoders.text_tower import CausalTextTower
from streamer.encoders.tuning import Arithmetic, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamer.encoders.protocol import Side
    from streamer.preprocessing import Frame

PROBE_QUERIES = (
    "a man on a red bicycle rides past",
    "dog",
    "two people in yellow jackets push a broken car along a wet road",
    " ".join(["a boat between large ships at night, the lights of a town on the water"] * 3),
)
"""Queries of one to some forty words; the first one, of eight words, is timed."""
PROBE_FRAMES = 2
_UPLOAD = 64
"""Frames per transfer to a device, which computes while the next ones are collected."""


def part_of(network: torch.nn.Module, side: Side, arithmetic: Arithmetic, device: torch.device) -> Any:
    """Return a copy of one side of an open_clip model with some precision, on a device.

    Unchanged parts share their memory with ``network``, which is not modified. Raises :class:`RuntimeError` if the
    processor does not support it.
    """
    # deepcopy takes an object's entry in the memo as its copy.
    memo: dict[int, Any] = {id(child): None for name, child in network.named_children() if not _belongs(name, side)}
    for tensor in (*network.parameters(), *network.buffers()):
        memo[id(tensor)] = _moved(tensor, arithmetic.between, device)
    part = copy.deepcopy(network, memo)
    if arithmetic.packed:
        pack(part, arithmetic.dtype)
    return part


def can_pack_side(network: torch.nn.Module, side: Side) -> bool:
    """Return whether that side of an open_clip model can be computed with packed weights."""
    return any(can_pack(child) for name, child in network.named_children() if _belongs(name, side))


def _belongs(name: str, side: Side) -> bool:
    return name == "visual" if side == "images" else name not in ("visual", "text_decoder")


def _moved(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    moved = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    return torch.nn.Parameter(moved, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else moved


class ImageTower:
    """Encodes frames of the model's size."""

    def __init__(
        self, network: torch.nn.Module, preprocessing: Mapping[str, Any], arithmetic: Arithmetic, device: torch.device
    ) -> None:
        """``preprocessing``: the model's ``preprocess_cfg``, whose mean and std are applied here."""
        self.network = part_of(network, "images", arithmetic, device)
        self._arithmetic, self._device = arithmetic, device
        mean, std = (torch.tensor(preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = mean.to(device), std.to(device)
        size = preprocessing["size"]
        self._probes = _probe_frames(*((size, size) if isinstance(size, int) else size))

    def encode(self, frames: Sequence[Frame]) -> npt.NDArray[np.float32]:
        """Encode frames (height, width, 3) in one batch: (n, dim)."""
        size = len(frames) if self._device.type == "cpu" else _UPLOAD
        with torch.inference_mode():
            features = [self._features(frames[start : start + size]) for start in range(0, len(frames), size)]
            return _unit(torch.cat(features), self._arithmetic)

    def _features(self, frames: Sequence[Frame]) -> torch.Tensor:
        # A copy from page-locked memory is asynchronous, so the CPU continues to queue the model's operations.
        shape = (len(frames), *frames[0].shape)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        np.stack(frames, out=batch.numpy())
        pixels = self.normalise(batch.to(self._device, non_blocking=True))
        features: torch.Tensor = self.network.encode_image(pixels.to(self._arithmetic.between))
        return features

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Convert (n, height, width, 3) bytes as torchvision's ToTensor and Normalize do for each frame."""
        channels_first = batch.permute(0, 3, 1, 2).contiguous()
        return channels_first.float().div_(255).sub_(self._mean).div_(self._std)

    def run(self) -> object:
        """Encode the frames for timing: few on a CPU, more on a device, which few would not keep busy."""
        return self.run_batch(PROBE_FRAMES if self._device.type == "cpu" else _UPLOAD)

    def run_batch(self, size: int) -> object:
        """Encode ``count`` frames."""
        return self.encode([self._probes[number % PROBE_FRAMES] for number in range(size)])

    def vectors(self) -> npt.NDArray[np.float32]:
        """Encode the frames for measuring accuracy: (n, dim)."""
        return self.encode(self._probes)


class TextTower:
    """Encodes queries."""

    def __init__(
        self,
        network: torch.nn.Module,
        tokenize: Callable[[Sequence[str]], torch.Tensor],
        arithmetic: Arithmetic,
        device: torch.device,
    ) -> None:
        self.network = part_of(network, "texts", arithmetic, device)
        self._tokenize = tokenize
        self._arithmetic, self._device = arithmetic, device
        self._causal = CausalTextTower.of(self.network)

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries in one batch: (n, dim)."""
        tokens = self._tokenize(list(queries))
        with torch.inference_mode():
            if self._causal is None:
                features = self.network.encode_text(tokens.to(self._device))
            else:
                # Truncate while the tokens are on the CPU, to avoid synchronizing with a device.
                features = self._causal.encode(self._causal.truncate(tokens).to(self._device))
            return _unit(features, self._arithmetic)

    def run(self) -> object:
        """Encode one query, the reranker's usual case."""
        return self.encode(PROBE_QUERIES[:1])

    def vectors(self) -> npt.NDArray[np.float32]:
        """Encode the queries for measuring accuracy: (n, dim)."""
        return self.encode(PROBE_QUERIES)


_DISC = 0.25
"""Radius of the disc in a probe frame, as a share of the frame."""


def _probe_frames(height: int, width: int) -> list[Frame]:
    """Return frames with smooth areas, edges and noise; deterministic."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    frames = []
    for number in range(PROBE_FRAMES):
        frame = 255 * np.stack([x, y, 1 - x], axis=-1)
        frame[np.hypot(x - 0.5, y - 0.3 * (number + 1)) < _DISC] = rng.integers(0, 256, 3)
        frame += rng.normal(0, 10 + 40 * number, frame.shape)
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def _unit(features: torch.Tensor, arithmetic: Arithmetic) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    if not np.isfinite(vectors).all():
        dtype = name_of(arithmetic.dtype)
        raise EncoderError(f"the model's vectors are not finite with dtype {dtype}", setting="dtype")
    return vectors
