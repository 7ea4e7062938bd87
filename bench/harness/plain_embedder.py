"""A simple embedder, with which ``bench/cases/embedding.py`` compares this project's.

It runs in a separate process, so that this project's settings of torch do not affect it. It processes one clip after
the other: PyAV decodes every frame; the sampled ones pass as PIL images through open_clip's own preprocessing and then,
as one batch, through its model in float32, on a CUDA device if there is one. The vectors of each clip are written in
one durable write.

    python bench/harness/plain_embedder.py MODEL PRETRAINED STORE MODEL_ID DIM

PRETRAINED may be empty. Each line of the standard input is a JSON list of paths. After the clips' vectors have been
stored, under the files' names as ids, the duration in seconds is written to the standard output.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import open_clip
import torch

from streamer.store import Clip, Position, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.store import Store

INTERVAL = 0.5
_ROUNDING_S = 1e-6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def sampled(path: Path) -> tuple[list[float], list[Any]]:
    """Return the times after the first frame, in seconds, and the images of the sampled frames."""
    times: list[float] = []
    images: list[Any] = []
    held: tuple[float, Any] | None = None
    first: float | None = None
    k = 0
    length = 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            shown = float(frame.time or 0)
            first = shown if first is None else first
            at = shown - first
            if held is not None and k * INTERVAL < at:
                times.append(held[0])
                images.append(held[1].to_image())
                while k * INTERVAL < at:
                    k += 1
            held = at, frame
            length = at + float(frame.duration * (frame.time_base or 0)) - _ROUNDING_S
    if held is not None and (k * INTERVAL <= held[0] or k * INTERVAL < length):
        times.append(held[0])
        images.append(held[1].to_image())
    return times, images


def embed(paths: Sequence[Path], network: Any, preprocess: Any, store: Store) -> None:
    """Embed clips, one after the other."""
    for number, path in enumerate(paths):
        times, images = sampled(path)
        batch = torch.stack([preprocess(image) for image in images])
        with torch.inference_mode():
            vectors = network.encode_image(batch.to(DEVICE), normalize=True).cpu().numpy()
        times_ms = np.array([round(each * 1000) for each in times], dtype=np.uint32)
        store.put([Clip(path.stem, AT, Position(0, number), round(times[-1] * 1000), vectors, times_ms)])


def main() -> None:
    """Process requests until the standard input ends."""
    model, pretrained, path, model_id, dim = sys.argv[1:]
    network, preprocess = open_clip.create_model_from_pretrained(model, pretrained or None)
    network.eval().to(DEVICE)
    store = open_store(f"lmdb:{path}", model_id=model_id, dim=int(dim))
    for line in sys.stdin:
        paths = [Path(each) for each in json.loads(line)]
        began = time.perf_counter()
        embed(paths, network, preprocess, store)
        print(time.perf_counter() - began, flush=True)
    store.close()


if __name__ == "__main__":
    main()
