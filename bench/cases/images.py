"""Encoded images per second, compared with open_clip's own `encode_image` on the same batches.

    python bench/cases/images.py

*Plain*: `encode_image` of a normalised batch that is already on the device, in float32 and with bfloat16 weights, with
torch's default number of threads. *Ours*: `encode_images` from the bytes of frames of the model's input size, as the
embedder calls it, with the arithmetic and the number of threads that loading the model chooses. They take turns on the
same frames; every vector is compared with the plain float32 one. If there is a CUDA device, everything is also measured
there, and with a ViT-L-14 too. *From host* is then plain bfloat16 from a normalised batch in the host's memory, where
decoded frames are.

*Overlap*: clips are decoded (in as many processes as there are CPUs) and encoded at the same time. It is the share of
the shorter of the two durations that is saved by this: 1 if a device encodes, near 0 if both need the same CPUs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
from PIL import Image

from bench.harness.clips import generate
from bench.harness.report import print_figures, spread
from bench.harness.workload import make_model
from streamer.encoders.loading import DEMO_FOLDER
from streamer.encoders.open_clip import OpenClipEncoder
from streamer.video import Sampling
from streamer.video.isolation.pool import DecodePool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from streamer.preprocessing import Frame
    from streamer.settings import Device

    Vectors = npt.NDArray[np.float32]

DEMO_MODEL = f"local-dir:{DEMO_FOLDER}"
"""The demo's model by a name that open_clip itself accepts."""
NAME = "images"

MODELS = {"cpu": ["ViT-B-32"], "cuda": ["ViT-B-32", "ViT-L-14"]}
BATCH = {"cpu": 32, "cuda": 512}
SIZES = {"cpu": (1, 4, 8, 16, 32), "cuda": (8, 32, 128, 512)}
CLIPS = {"cpu": 6, "cuda": 128}
WAITING = 24
"""Clips that may wait for a decoder, as in the embedder."""


class Plain:
    """open_clip alone, in one dtype on one device."""

    def __init__(self, model: str, pretrained: str | None, dtype: torch.dtype, device: Device) -> None:
        network, self.preprocess = open_clip.create_model_from_pretrained(model, pretrained)
        self._network = network.eval().to(device, dtype)
        self._dtype, self._device = dtype, device

    def batch(self, normalised: torch.Tensor) -> torch.Tensor:
        """Move a batch to the device."""
        return normalised.to(self._device, self._dtype)

    def encode(self, batch: torch.Tensor) -> Vectors:
        """Encode a batch and wait for the vectors."""
        with torch.inference_mode():
            # Normalised in float32, because in bfloat16 the lengths are wrong by a few thousandths.
            features = self._network.encode_image(batch, normalize=False).float()
            vectors: Vectors = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
        return vectors


def frames_of(size: tuple[int, int], count: int) -> list[Frame]:
    """Return generated images, coloured squares with noise, of the model's input size."""
    draw = np.random.default_rng(0)
    cell = 8
    shape = (count, size[0] // cell, size[1] // cell, 3)
    blotches = draw.normal(128, 50, shape).repeat(cell, axis=1).repeat(cell, axis=2)
    noisy = blotches + draw.normal(0, 10, blotches.shape)
    return list(noisy.clip(0, 255).astype(np.uint8))


def timed(run: Callable[[], Vectors], threads: int) -> tuple[float, Vectors]:
    """Return the seconds of one call and its result."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    vectors = run()
    return time.perf_counter() - began, vectors


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size with the small model."""
    threads = torch.get_num_threads()
    devices: list[Device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    size, seconds = ("160x120", (1.0, 1.5)) if quick else ("1280x720", (5.0, 15.0))
    figures: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-images-") as name:
            folder = Path(name)
            clips = generate(folder, 2 if quick else CLIPS[devices[-1]], size=size, seconds=seconds)
            for device in devices:
                some = clips[: CLIPS[device]]
                if quick:
                    figures[device] = _measure(DEMO_MODEL, None, device, threads, some, quick=quick)
                    continue
                for model in MODELS[device]:
                    weights = make_model(folder, model)["STREAMER_PRETRAINED"]
                    key = device if model == MODELS[device][0] else f"{device}_{model}"
                    figures[key] = _measure(model, weights, device, threads, some, quick=quick)
    finally:
        torch.set_num_threads(threads)
    return figures


def _measure(
    model: str, pretrained: str | None, device: Device, threads: int, clips: Sequence[Path], *, quick: bool
) -> dict[str, Any]:
    rounds, batch = (1, 4) if quick else (4, BATCH[device])
    torch.set_num_threads(threads)
    ours = OpenClipEncoder.load(model, pretrained, device=device, sides=["images"])
    own_threads = torch.get_num_threads()
    plain = {str(dtype).removeprefix("torch."): Plain(model, pretrained, dtype, device) for dtype in _PLAIN}
    prepared = ours.prepare(np.zeros((64, 64, 3), np.uint8))
    frames = frames_of((prepared.shape[0], prepared.shape[1]), batch)
    preprocess = plain["float32"].preprocess
    normalised = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    batches = {name: each.batch(normalised) for name, each in plain.items()}
    ways: dict[str, tuple[Callable[[], Vectors], int]] = {
        **{f"plain_{name}": (partial(each.encode, batches[name]), threads) for name, each in plain.items()},
        "ours": (lambda: ours.encode_images(frames)[:, 0], own_threads),
    }
    if device == "cuda":
        from_host = plain["bfloat16"]
        ways["plain_bfloat16_from_host"] = lambda: from_host.encode(from_host.batch(normalised)), threads
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = deque(ways)
    vectors = {name: timed(*way)[1] for name, way in ways.items()}
    for _ in range(rounds):
        for name in order:
            seconds[name].append(timed(*ways[name])[0])
        order.rotate()
    by_size: dict[str, Any] = {}
    for size in (each for each in SIZES[device] if each <= batch):
        some = partial(ours.encode_images, frames[:size])
        by_size[str(size)] = spread(size / timed(some, own_threads)[0] for _ in range(rounds))
    exact = vectors["plain_float32"]
    return {
        "model": f"{model}, random weights" if pretrained else "the small trained model",
        "chosen": f"{ours.arithmetic['images']}; {own_threads} threads, batches of {ours.image_batch}",
        "plain_threads": threads,
        "batch": batch,
        **{f"{name}_images_per_s": spread(batch / each for each in taken) for name, taken in seconds.items()},
        **{
            f"ratio_to_{name}": spread(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
            for name in seconds
            if name != "ours"
        },
        "least_cosine_ours": float(np.sum(exact * vectors["ours"], axis=1).min()),
        "least_cosine_plain_bfloat16": float(np.sum(exact * vectors["plain_bfloat16"], axis=1).min()),
        "ours_images_per_s_by_batch": by_size,
        "decode_and_encode": overlap(ours, clips, ours.image_batch),
    }


_PLAIN = (torch.float32, torch.bfloat16)


def overlap(encoder: OpenClipEncoder, clips: Sequence[Path], batch: int) -> dict[str, float]:
    """Return the seconds of decoding ``clips``, of encoding their frames, and of both at the same time."""
    decoders = len(os.sched_getaffinity(0))
    pool = DecodePool(Sampling(0.5, 64), encoder.prepare, workers=decoders, timeout=60, memory=2 << 30)

    def decode(path: Path) -> list[Frame]:
        with pool.sampled(path) as sampled:
            return sampled.frames

    def encode(frames: list[Frame]) -> None:
        for start in range(0, len(frames), batch):
            encoder.encode_images(frames[start : start + batch])

    try:
        with ThreadPoolExecutor(decoders + WAITING) as threads:
            list(threads.map(decode, clips[:1]))
            began = time.perf_counter()
            decoded = list(threads.map(decode, clips))
            decoding = time.perf_counter() - began
            began = time.perf_counter()
            every = [frame for frames in decoded for frame in frames]
            encode(every)
            encoding = time.perf_counter() - began
            encoded = len(every)
            del decoded, every
            began = time.perf_counter()
            for future in as_completed([threads.submit(decode, path) for path in clips]):
                encode(future.result())
            both = time.perf_counter() - began
    finally:
        pool.close()
    return {
        "decode_s": decoding,
        "encode_s": encoding,
        "both_s": both,
        "frames": encoded,
        "overlap": (decoding + encoding - both) / min(decoding, encoding),
    }


def main() -> None:
    """Measure and print."""
    for device, figures in measure(quick=False).items():
        print_figures({"device": device, **figures})


if __name__ == "__main__":
    main()
