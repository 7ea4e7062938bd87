"""``streamer probe``: measures what a model understands of negation, numbers and sides, and what one word changes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from streamer.commands.flags import SettingsCommand
from streamer.commands.replay import FILE
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from streamer.encoders import Encoder
    from streamer.evaluation.page import Page
    from streamer.evaluation.words.scores import Scored, Sensitivity, Texts
    from streamer.settings import ProbeSettings

_OUTPUT = click.File("w", encoding="utf-8", lazy=True)


@click.command(cls=SettingsCommand, uses="probe", short_help="Measure what the model understands beyond nouns.")
@click.option(
    "--pairs", type=click.IntRange(8, 10_000), default=200, show_default=True, help="Number of probes of each kind."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=11,
    show_default=True,
    help="Random seed; the same seed gives the same probes.",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 2),
    default=0.5,
    show_default=True,
    help="Weight of the negated part in the negation rule that is tried.",
)
@click.option(
    "--words",
    metavar="starter|FILE",
    help="Ask the store instead, with pairs of queries that differ in one word: the small list of the package, or a "
    "TOML file with [[pairs]] of kind, first and second.",
)
@click.option(
    "--candidates",
    type=FILE,
    help="With --words: recorded query.results events, whose candidates are asked instead of the whole store.",
)
@click.option(
    "--clips",
    "most",
    type=click.IntRange(20, 100_000),
    default=5_000,
    show_default=True,
    help="With --words: most clips, drawn by the seed.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 1_000),
    default=10,
    show_default=True,
    help="With --words: number of first results that are compared.",
)
@click.option(
    "--videos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --words: folder with the clips' files, named by clip id; they are decoded anew with masked frames.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="With --videos: most clips that are decoded, drawn by the seed.",
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with a plot to this file.")
def probe(
    settings: ProbeSettings,
    pairs: int,
    seed: int,
    weight: float,
    words: str | None,
    candidates: Path | None,
    most: int,
    top: int,
    videos: Path | None,
    sample: int,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Ask the model to choose between two rendered clips that differ in one thing, and compare it with chance.

    Probes negation ("no", "without"), numbers, left and right, and as a control objects. With --words, asks the stored
    clips with pairs of queries that differ in one word, to see whom the model prefers: docs/fairness.md. Needs the
    extra: cliprerank-streamer[evaluation].
    """
    if words is None and (candidates is not None or videos is not None):
        raise click.UsageError("--candidates and --videos need --words")
    settings.named_model()
    if words is not None:
        _words(settings, words, candidates, most, top, videos, sample, seed, json_file, html_file)
        return
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.synthetic import probe_report, probes  # noqa: PLC0415

    encoder = load_model(settings)
    with Terminal(stderr=True).status(f"Asking {pairs} probes of each kind"):
        scored = probes.score(encoder, probes.pairs(seed, pairs), weight)
    found = probe_report.data(scored, model_id=encoder.model_id, seed=seed, weight=weight)
    _write(found, probe_report.page(found), probe_report.terminal(found), json_file, html_file)


def _words(
    settings: ProbeSettings,
    words: str,
    candidates: Path | None,
    most: int,
    top: int,
    videos: Path | None,
    sample: int,
    seed: int,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    from streamer.evaluation.words.lists import read_pairs  # noqa: PLC0415

    pairs = read_pairs(words)  # a list that cannot be used is reported before a model is loaded
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation import material, questions  # noqa: PLC0415
    from streamer.evaluation.masks.anew import drawn  # noqa: PLC0415
    from streamer.evaluation.words import figures, report, scores  # noqa: PLC0415

    encoder = load_model(settings, sides=["texts"]) if videos is None else load_model(settings)
    texts = scores.texts_of(encoder, pairs)
    with contextlib.closing(material.open_vectors(settings, encoder.model_id)) as store:
        asked = None if candidates is None else questions.events_of_file(candidates)
        clip_ids: Iterable[str] = (
            store.clip_ids() if asked is None else (each.clip_id for event in asked for each in event.results)
        )
        with Terminal(stderr=True).status(f"Asking {len(pairs)} pairs of queries"):
            scored = scores.of_store(store, drawn(clip_ids, most, seed), texts)
    masked = None if videos is None else _masked(settings, encoder, texts, scored, videos, sample, seed)
    found = {
        "model_id": encoder.model_id,
        "seed": seed,
        **figures.decide(pairs, scored, masked, top=top, seed=seed),
    }
    _write(found, report.page(found, encoder.model_id), report.terminal(found), json_file, html_file)


def _masked(
    settings: ProbeSettings, encoder: Encoder, texts: Texts, scored: Scored, videos: Path, sample: int, seed: int
) -> Sensitivity:
    from streamer.evaluation.masks.anew import Anew, drawn, files_of  # noqa: PLC0415
    from streamer.evaluation.words import scores  # noqa: PLC0415
    from streamer.video.sampling.sample import Sampling  # noqa: PLC0415

    files = files_of(videos, scored.clips)
    chosen = drawn(files, sample, seed)
    sampling = Sampling(settings.frame_interval, settings.max_frames)
    anew = Anew(encoder, sampling, seed=seed, sandbox=settings.decoder_sandbox)
    with Terminal(stderr=True).status(f"Decoding {len(chosen)} clips with masked frames"):
        found = scores.sensitivity(anew, texts, [files[clip] for clip in chosen])
    if found is None:
        raise click.ClickException(f"{videos}: no file is named as a clip and can be decoded")
    return found


def _write(
    found: dict[str, Any],
    page: Page,
    tables: Iterable[Table],
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    import orjson  # noqa: PLC0415

    from streamer.evaluation.page import render  # noqa: PLC0415

    if html_file is not None:
        html_file.write(printable(render(page), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        echo(found["sentence"])
        console = Terminal()
        for table in tables:
            console.print(table)
