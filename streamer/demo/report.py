"""The demo's report: a self-contained HTML page, and summary.json with its figures."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from streamer.evaluation.meaning import explained, variables
from streamer.evaluation.page import Headline, Settings, embedded, environment, show
from streamer.events import Status
from streamer.method import method_of
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
    answers = [_answer(query) for query in queries]
    data: dict[str, Any] = {**summary, **_meaning(summary, queries), "answers": answers}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
    page = folder / "index.html"
    page.write_text(
        environment("streamer.demo")
        .get_template("report.html.j2")
        .render(
            title="CLIPRerank over Kafka: effect of reranking",
            data=embedded(data),
            answers=answers,
            show=functools.partial(show, data),
            headline=_headline(data),
            advice=data["advice"],
            settings=Settings(
                "The settings of this run, for the environment of streamer rerank:",
                {name: show(data, "settings", name) for name in data["settings"]},
            ),
            explained=explained(["AP"])[0],
            caption=(
                f"Average precision of each query: grey the engine's, blue after reranking. {data['gained']:,} gain, "
                f"{data['lost']:,} lose."
            ),
            pictures=[
                {
                    "results": [_picture(result, pictures) for result in query.event.results[:TOP]],
                    "engine": [_picture(result, pictures) for result in _by_engine(query)],
                }
                for query in queries
            ],
            model=model,
            judged=judged,
        ),
        encoding="utf-8",
    )
    return page


def _meaning(summary: Mapping[str, Any], queries: Sequence[Judged]) -> dict[str, Any]:
    """Return what the run means: a sentence, advice, the number of queries that gain and lose, and the settings."""
    known = [(each.before, each.after) for each in queries if each.before is not None and each.after is not None]
    gained, lost = (sum(sign * (after - before) > 0 for before, after in known) for sign in (1, -1))
    changed = sum(
        [each.clip_id for each in query.event.results[:TOP]] != [each.clip_id for each in _by_engine(query)]
        for query in queries
    )
    before, after = summary.get("map_before"), summary.get("map_after")
    if before is not None and after is not None:
        verb = "raises" if after > before else "lowers" if after < before else "does not change"
        sentence = (
            f"Reranking {verb} the mean average precision of {len(known):,} queries: it goes from {before:.3f} to "
            f"{after:.3f}; {gained:,} gain and {lost:,} lose."
        )
        advice = [
            "The path works; what your users gain, rendered clips and a model trained on such clips do not show.",
            "Try your own clips, queries and model next: streamer demo --clips FOLDER --queries FILE --model NAME.",
        ]
    else:
        sentence = (
            f"Reranking changes the first {TOP} results of {changed:,} of {len(queries):,} queries; nobody has judged "
            "whether they are better."
        )
        advice = [
            "Look at the first results below: do the reranked ones show what is asked for?",
            "Judge some: streamer evaluate says whether a gain is significant, streamer pilot what changes for users.",
        ]
    method = next((asdict(method_of(query.event)) for query in queries), {})
    return {
        "sentence": sentence,
        "advice": advice,
        "gained": gained,
        "lost": lost,
        "settings": variables(method),
    }


def _headline(data: Mapping[str, Any]) -> list[Headline]:
    figures = [
        Headline(show(data, "clips"), "clips"),
        Headline(show(data, "frames"), "frames embedded"),
        Headline(show(data, "clips_per_s", form=".1f"), "clips a second"),
        Headline(show(data, "events_per_s", form=".0f"), "query events a second, from a backlog"),
        Headline(show(data, "p50_ms", form=".1f", unit=" ms"), "p50 from query to result"),
        Headline(show(data, "p95_ms", form=".1f", unit=" ms"), "p95"),
        Headline(show(data, "lag_records"), "records of lag at the end"),
    ]
    before, after = data["map_before"], data["map_after"]
    if before is None or after is None:
        return figures
    tone = "gain" if after > before else "loss" if after < before else ""
    return [
        Headline(show(data, "map_before", form=".3f"), "mean average precision before"),
        Headline(show(data, "map_after", form=".3f"), "after reranking", tone),
        *figures,
    ]


def _by_engine(query: Judged) -> list[RerankedCandidate]:
    return sorted(query.event.results, key=lambda result: result.initial_rank)[:TOP]


def _answer(query: Judged) -> dict[str, Any]:
    event = query.event
    return {
        "query_id": event.query_id,
        "text": event.query,
        "before": query.before,
        "after": query.after,
        "engine": [
            _result(result, query, rank=result.initial_rank, new_rank=result.rank) for result in _by_engine(query)
        ],
        "results": [
            _result(result, query, rank=result.rank, old_rank=result.initial_rank) for result in event.results[:TOP]
        ],
    }


def _result(result: RerankedCandidate, query: Judged, **ranks: int) -> dict[str, Any]:
    return {
        **ranks,
        "clip_id": result.clip_id,
        "climb": result.initial_rank - result.rank,
        "score": result.score,
        "frame_score": result.frame_score,
        "seconds": None if result.moment_ms is None else result.moment_ms / 1000,
        "relevant": None if query.relevant is None else result.clip_id in query.relevant,
    }


def _picture(result: RerankedCandidate, pictures: FramePictures) -> str | None:
    if result.status is not Status.RERANKED or result.moment_ms is None:
        return None
    return pictures.at(result.clip_id, result.moment_ms)
