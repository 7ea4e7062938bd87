"""Encoding one query's text, compared with open_clip's own `encode_text`.

    python bench/cases/text.py

*Plain* is the code of open_clip's documentation: the tokenizer and `encode_text` in float32 over the full context, with
torch's default number of threads, or on a CUDA device if there is one. *Ours* is `encode_texts` as the reranker calls
it, with the arithmetic and the number of threads that loading the model chooses; it is also measured in float32. They
take turns, each query is new, and every vector of ours is compared with the plain one.

The model is ViT-B-32 with random weights, because trained weights cannot be downloaded everywhere. Speed does not
depend on the weights; the cosines of the included small model, which is trained, are reported too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch

from bench.harness.report import print_figures, spread
from bench.harness.workload import make_model
from streamer.encoders.loading import DEMO_FOLDER
from streamer.encoders.open_clip import OpenClipEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

DEMO_MODEL = f"local-dir:{DEMO_FOLDER}"
"""The demo's model by a name that open_clip itself accepts."""
NAME = "text"

_LINES = (
    "a the man woman child dog horse red blue yellow small old on in under behind bicycle street river bridge rides",
    "walks jumps throws carries ball umbrella crowd train station snow night two three people kitchen guitar",
)
WORDS = [word for line in _LINES for word in line.split()]
LENGTHS = (4, 8, 12)
BATCH = 16


@dataclass(slots=True)
class Way:
    """A method of encoding queries, and the seconds of its calls."""

    encode: Callable[[Sequence[str]], npt.NDArray[np.float32]]
    threads: int
    seconds: list[float] = field(default_factory=list)

    def timed(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode with this method's number of threads, and note the duration."""
        torch.set_num_threads(self.threads)
        began = time.perf_counter()
        vectors = self.encode(queries)
        self.seconds.append(time.perf_counter() - began)
        return vectors


def plain(model: str, pretrained: str | None) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Return the method of open_clip's documentation."""
    network, _ = open_clip.create_model_from_pretrained(model, pretrained)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.eval().to(device)
    tokenizer = open_clip.get_tokenizer(model)

    def encode(queries: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            features = network.encode_text(tokenizer(list(queries)).to(device), normalize=True)
        vectors: npt.NDArray[np.float32] = features.cpu().numpy()
        return vectors

    return encode


def contest(ways: dict[str, Way], batches: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Let the methods take turns at each batch, in rotating order; the first of ``ways`` is the reference."""
    names = deque(ways)
    reference = names[0]
    cosines: dict[str, list[float]] = {name: [] for name in names if name != reference}
    for way in ways.values():
        way.timed(batches[0])
        way.seconds.clear()
    for queries in batches:
        vectors = {name: ways[name].timed(queries) for name in names}
        names.rotate()
        for name in cosines:
            cosines[name] += np.sum(vectors[name] * vectors[reference], axis=1).tolist()
    seconds = {name: way.seconds for name, way in ways.items()}
    return {
        **{f"{name}_ms": spread(1000 * each for each in taken) for name, taken in seconds.items()},
        **{
            f"ratio_{name}": spread(a / b for a, b in zip(seconds[reference], seconds[name], strict=True))
            for name in cosines
        },
        **{f"least_cosine_{name}": min(found) for name, found in cosines.items()},
        **{f"median_cosine_{name}": statistics.median(found) for name, found in cosines.items()},
    }


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size with the small model."""
    rounds = 3 if quick else 40
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-text-") as folder:
            settings = {"STREAMER_MODEL": DEMO_MODEL} if quick else make_model(Path(folder))
            figures = _measure(settings["STREAMER_MODEL"], settings.get("STREAMER_PRETRAINED"), rounds, threads)
            if not quick:
                figures["trained_small_model"] = _measure(DEMO_MODEL, None, rounds, threads)
    finally:
        torch.set_num_threads(threads)
    return figures


def _measure(model: str, pretrained: str | None, rounds: int, threads: int) -> dict[str, Any]:
    draw = np.random.default_rng(0)

    def query(words: int) -> str:
        return " ".join(draw.choice(WORDS, words))

    torch.set_num_threads(threads)
    ours = OpenClipEncoder.load(model, pretrained, sides=["texts"])
    threads_of_ours = torch.get_num_threads()
    exact = OpenClipEncoder.load(model, pretrained, dtype="float32", threads=threads_of_ours, sides=["texts"])
    ways = {
        "plain": Way(plain(model, pretrained), threads),
        "ours": Way(ours.encode_texts, threads_of_ours),
        "ours_in_float32": Way(exact.encode_texts, threads_of_ours),
    }
    figures: dict[str, Any] = {
        "model": "ViT-B-32, random weights" if pretrained else "the small trained model",
        "chosen": f"{ours.arithmetic['texts']}; {threads_of_ours} threads",
        "plain": f"float32, full context; {threads} threads",
    }
    for words in LENGTHS:
        figures[f"one_query_of_{words}_words"] = contest(ways, [[query(words)] for _ in range(rounds)])
    mixed = [[query(int(draw.integers(1, 13))) for _ in range(BATCH)] for _ in range(max(1, rounds // 5))]
    figures[f"batch_of_{BATCH}_queries"] = contest(ways, mixed)
    return figures


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
