"""``streamer benchmark``: the synthetic benchmark rendered, embedded, searched, reranked and measured."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from streamer.encoders import load_model
from streamer.evaluation import trec
from streamer.evaluation.comparison import compare
from streamer.evaluation.measures import INFERRED_AP, evaluate
from streamer.evaluation.questions import questions_of
from streamer.evaluation.replay import Replay, offline
from streamer.method import Method
from streamer.store import Clip, Position, open_store
from streamer.synthetic import avs
from streamer.synthetic.clips import render_clips
from streamer.synthetic.engine import BaseEngine
from streamer.synthetic.measures import average_precision
from streamer.video.isolation.pool import decoder_of_one
from streamer.video.sampling.sample import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streamer.encoders import Encoder
    from streamer.evaluation.comparison import Comparison
    from streamer.evaluation.trec import Run
    from streamer.settings import BenchmarkSettings, Sandbox
    from streamer.store import Store
    from streamer.synthetic.clips import DemoClip, DemoQuery
    from streamer.terminal import Terminal

DEPTH = 1000
"""TRECVID's depth: the whole run is reranked, as in the paper; an explicit ``--depth`` overrides it."""
SIGNIFICANT = 0.05
_UPLOADED_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Size:
    """The size and the seed of a benchmark."""

    clips: int
    topics: int
    seed: int


def run(settings: BenchmarkSettings, console: Terminal, size: Size, folder: Path) -> dict[str, Any]:
    """Make the benchmark in ``folder`` and measure it there.

    The folder then has the clips, the store, ``topics.tsv``, ``qrels``, for each engine ``base-X.run`` and
    ``reranked-X.run``, and ``results.json``, which is returned. Raises SettingsError.
    """
    encoder = load_model(settings)
    with console.status(f"Rendering {size.clips} clips"):
        clips = render_clips(folder / "clips", count=size.clips, seed=size.seed)
    topics = avs.draw_topics(clips, count=size.topics, seed=size.seed)
    store = open_store(
        f"lmdb:{folder / 'store'}", model_id=encoder.model_id, dim=encoder.dim, precision=settings.precision
    )
    with contextlib.closing(store):
        with console.status("Embedding the clips"):
            sampling = Sampling(settings.frame_interval, settings.max_frames)
            embed(clips, encoder, store, sampling, sandbox=settings.decoder_sandbox)
        with console.status("The stand-in engine indexes whole clips"):
            paths = {clip.clip_id: clip.path for clip in clips}
            engine = BaseEngine(encoder, paths, sandbox=settings.decoder_sandbox)
            answers = {topic.query_id: engine.rank(topic.text, top=len(clips)) for topic in topics}
        with console.status("Reranking"):
            method = settings.method if "depth" in settings.model_fields_set else replace(settings.method, depth=DEPTH)
            results = measure(method, topics, answers, encoder, store, size, folder)
    (folder / "results.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    return results


def embed(
    clips: Sequence[DemoClip], encoder: Encoder, store: Store, sampling: Sampling, *, sandbox: Sandbox = "require"
) -> None:
    """Sample, encode and store clips, as the embedder does."""
    with decoder_of_one(sampling, encoder.prepare, sandbox=sandbox) as decoder:
        for number, clip in enumerate(clips):
            with decoder.sampled(clip.path) as sampled:
                vectors = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim)
            times = np.repeat(sampled.times_ms, encoder.vectors_per_frame)
            position = Position.of("benchmark", number)
            store.put([Clip(clip.clip_id, _UPLOADED_AT, position, sampled.duration_ms, vectors, times)])


def measure(
    method: Method,
    topics: Sequence[DemoQuery],
    answers: Mapping[str, Sequence[tuple[str, float]]],
    encoder: Encoder,
    store: Store,
    size: Size,
    folder: Path,
) -> dict[str, Any]:
    """Make the engines' runs from ``answers``, rerank each, pool and judge all, write the files and compare."""
    texts = {topic.query_id: topic.text for topic in topics}
    bases = avs.base_runs(answers, topics, seed=size.seed)
    reranked = {
        name: trec.Run(Replay(offline(method, questions_of(base, texts), encoder, store)).topics, f"reranked-{name}")
        for name, base in bases.items()
    }
    qrels = avs.sample_judgments([*bases.values(), *reranked.values()], topics, seed=size.seed)
    trec.write_topics(folder / "topics.tsv", texts)
    trec.write_qrels(folder / "qrels", qrels)
    engines = []
    for strength in avs.STRENGTHS:
        before, after = bases[strength.name], reranked[strength.name]
        trec.write_run(folder / f"base-{strength.name}.run", before)
        trec.write_run(folder / f"reranked-{strength.name}.run", after)
        compared = compare(evaluate(before, qrels), evaluate(after, qrels))[INFERRED_AP]
        truth = [_mean_ap(each, topics) for each in (before, after)]
        engines.append(
            {
                **asdict(strength),
                "infAP": _figures(compared),
                "AP": dict(zip(_SIDES, truth, strict=True)),
                "reached": _reached(before, topics, method.depth),
            }
        )
    judgments = qrels.topics.values()
    return {
        "clips": size.clips,
        "topics": len(topics),
        "seed": size.seed,
        "relevant_a_topic": float(np.mean([len(topic.relevant) for topic in topics])),
        "pooled": sum(len(each.shots) for each in judgments),
        "judged": sum(int((each.rels >= 0).sum()) for each in judgments),
        "strata": [asdict(stratum) for stratum in avs.STRATA],
        "model_id": encoder.model_id,
        **asdict(method),
        "engines": engines,
        "verdict": verdict(engines),
    }


_SIDES = ("before", "after")


def _figures(compared: Comparison) -> dict[str, Any]:
    figures = asdict(compared)
    del figures["by_strength"]
    return figures


def _mean_ap(run: Run, topics: Sequence[DemoQuery]) -> float:
    return float(
        np.mean([average_precision(run.topics[each.query_id].ranked().shots, each.relevant) for each in topics])
    )


def _reached(run: Run, topics: Sequence[DemoQuery], depth: int) -> float:
    """Return the mean share of relevant clips within the depth."""
    within = [len(each.relevant.intersection(run.topics[each.query_id].ranked().shots[:depth])) for each in topics]
    return float(np.mean([found / len(each.relevant) for found, each in zip(within, topics, strict=True)]))


def verdict(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences: each engine's gain, its significance, and whether the gain decreases with strength."""
    said = []
    ordered = sorted(engines, key=lambda engine: engine["infAP"]["before"])
    for engine in ordered:
        figures = engine["infAP"]
        p = figures["randomization_p"]
        how = "not significant" if p is None or p >= SIGNIFICANT else f"significant, p = {p:.2g}"
        change = "gains" if figures["gain"] > 0 else "loses"
        said.append(
            f"Engine {engine['name']} {change} {abs(figures['gain']):.3f} ({how}): {figures['wins']} topics better, "
            f"{figures['losses']} worse."
        )
    for weaker, stronger in itertools.pairwise(ordered):
        if stronger["infAP"]["gain"] >= weaker["infAP"]["gain"]:
            reached = [f"{100 * each['reached']:.0f} % of engine {each['name']}'s" for each in (weaker, stronger)]
            said.append(
                f"The gain does not decrease from engine {weaker['name']} to {stronger['name']}. Clips below the depth "
                f"cannot rise: within it are {' and '.join(reached)} relevant clips."
            )
    if len(said) == len(ordered):
        said.append("The stronger the engine, the smaller the gain.")
    return said


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table of gains, and its interpretation, for the documentation."""
    lines = [
        "| engine | infAP | reranked | gain | 95 % interval | p | topics better / worse | AP, all judged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for engine in results["engines"]:
        figures, truth = engine["infAP"], engine["AP"]
        interval = f"{figures['gain_low']:+.3f} to {figures['gain_high']:+.3f}"
        lines.append(
            f"| {engine['name']} | {figures['before']:.3f} | {figures['after']:.3f} | {figures['gain']:+.3f} "
            f"| {interval} | {figures['randomization_p']:.2g} | {figures['wins']} / {figures['losses']} "
            f"| {truth['before']:.3f} to {truth['after']:.3f} |"
        )
    method = Method(**{each.name: results[each.name] for each in fields(Method) if each.name in results})
    judged = f"{results['judged']:,} of {results['pooled']:,} pooled clips judged"
    drawn = (
        f"{results['topics']} topics on {results['clips']} rendered clips, {results['relevant_a_topic']:.1f} relevant"
    )
    lines += [
        "",
        f"{drawn} per topic, {judged}; {method}, model `{results['model_id']}`.",
        "",
        *(f"- {line}" for line in results["verdict"]),
    ]
    return "\n".join(lines) + "\n"
