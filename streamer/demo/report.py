"""The demo's report: a self-contained HTML page, and summary.json with its figures."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from streamer.evaluation.page import embedded, environment, show
from streamer.events import Status
from streamer.video import Sampling
from streamer.video.isolation.pool import decoder_of_one
from streamer.video.thumbnails import jpeg_uri, thumbnail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streamer.events import QueryReranked, RerankedCandidate
    from streamer.settings import Sandbox
    from streamer.video.isolation.pool import DecodePool

TOP = 5
"""Number of results shown per query."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One reranked query with its measures; without judgments everything but the event is None."""

    event: QueryReranked
    relevant: frozenset[str] | None
    before: float | None
    after: float | None


class FramePictures:
    """Cuts single frames out of clips as JPEG data URIs, each clip decoded once; to be closed in the end."""

    def __init__(
        self, paths: Mapping[str, Path], *, interval: float, max_frames: int, sandbox: Sandbox = "require"
    ) -> None:
        self._paths = paths
        self._sampling = Sampling(interval, max_frames)
        self._sandbox: Sandbox = sandbox
        self._opened = contextlib.ExitStack()
        self._decoder: DecodePool | None = None
        self._clips: dict[str, dict[int, str]] = {}

    def at(self, clip_id: str, moment_ms: int) -> str:
        """Return the sampled frame at that time."""
        if clip_id not in self._clips:
            if self._decoder is None:
                decoder = decoder_of_one(self._sampling, thumbnail, sandbox=self._sandbox)
                self._decoder = self._opened.enter_context(decoder)
            with self._decoder.sampled(self._paths[clip_id]) as clip:
                pictures = [jpeg_uri(frame) for frame in clip.frames]
                self._clips[clip_id] = dict(zip(clip.times_ms.tolist(), pictures, strict=True))
        return self._clips[clip_id][moment_ms]

    def close(self) -> None:
        """End the decoder."""
        self._opened.close()


def write(
    folder: Path, *, summary: Mapping[str, Any], queries: Sequence[Judged], pictures: FramePictures, model: str
) -> Path:
    """Write summary.json (the figures of the run, and the first results of each query) and index.html into ``folder``.

    Return the page's path. Queries with judgments are sorted by gain.
    """
    judged = summary.get("map_before") is not None
    if judged:
        queries = sorted(queries, key=lambda query: (query.after or 0.0) - (query.before or 0.0), reverse=True)
    data = {**summary, "answers": [_answer(query) for query in queries]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
    page = folder / "index.html"
    page.write_text(
        environment("streamer.demo")
        .get_template("report.html.j2")
        .render(
            title="CLIPRerank over Kafka: effect of reranking",
            data=embedded(data),
            answers=data["answers"],
            show=functools.partial(show, data),
            pictures=[[_picture(result, pictures) for result in query.event.results[:TOP]] for query in queries],
            model=model,
            judged=judged,
        ),
        encoding="utf-8",
    )
    return page


def _answer(query: Judged) -> dict[str, Any]:
    event = query.event
    return {
        "query_id": event.query_id,
        "text": event.query,
        "before": query.before,
        "after": query.after,
        "results": [
            {
                "rank": result.rank,
                "clip_id": result.clip_id,
                "old_rank": result.initial_rank,
                "climb": result.initial_rank - result.rank,
                "score": result.score,
                "frame_score": result.frame_score,
                "seconds": None if result.moment_ms is None else result.moment_ms / 1000,
                "relevant": None if query.relevant is None else result.clip_id in query.relevant,
            }
            for result in event.results[:TOP]
        ],
    }


def _picture(result: RerankedCandidate, pictures: FramePictures) -> str | None:
    if result.status is not Status.RERANKED or result.moment_ms is None:
        return None
    return pictures.at(result.clip_id, result.moment_ms)
