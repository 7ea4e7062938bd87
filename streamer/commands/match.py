"""``streamer match``: makes what the match of an answer is read from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from streamer.commands.evaluate import paragraph_option
from streamer.commands.flags import SettingsCommand
from streamer.match import Bank, written
from streamer.match.bank import LEAST_CLIPS
from streamer.match.bank_file import MAX_CLIPS
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.encoders import Encoder
    from streamer.evaluation.matching import Lists
    from streamer.settings import MatchCommandSettings
    from streamer.store import Store

_INPUT = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
_OUTPUT = click.File("w", encoding="utf-8", lazy=True)


@click.group()
def match() -> None:
    """Say how well the best candidate of a list matches."""


@match.command("fit", cls=SettingsCommand, uses="match", short_help="Draw a bank of clips, and calibrate it.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write, for STREAMER_MATCH."
)
@click.option(
    "--clips",
    type=click.IntRange(LEAST_CLIPS, MAX_CLIPS),
    default=1_000,
    show_default=True,
    help="Number of clips to draw. Each query is compared with all of them.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="Random seed; the same seed draws the same clips of the same store.",
)
@click.option("--run", "run_file", type=_INPUT, help="TREC run of the engine; needs --topics and --qrels.")
@click.option("--topics", "topics_file", type=_INPUT, help="Text of each topic.")
@click.option("--qrels", "qrels_file", type=_INPUT, help="AVS judgments, or ground truth as CSV, JSON or .npy.")
@paragraph_option()
@click.option(
    "--leave-out-unjudged",
    is_flag=True,
    help="Leave out lists whose best candidate was not judged; otherwise it counts as not relevant.",
)
@click.option(
    "--folds", type=click.IntRange(2, 100), default=5, show_default=True, help="Number of cross-validation folds."
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with a plot to this file; needs --qrels.")
def fit(
    settings: MatchCommandSettings,
    out: Path,
    clips: int,
    seed: int,
    run_file: Path | None,
    topics_file: Path | None,
    qrels_file: Path | None,
    is_paragraph: bool,
    leave_out_unjudged: bool,
    folds: int,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Draw a bank of clips from the store, with which the reranker compares the best frame score of each list.

    With a run and its judgments, a match is the probability that the candidate with the best frame score is relevant,
    and its reliability is measured on topics that were left out. Without, it is a percentile. Judgments need the extra:
    cliprerank-streamer[evaluation].
    """
    if len({run_file is None, topics_file is None, qrels_file is None}) > 1:
        raise click.UsageError("--run, --topics and --qrels must be given together")
    if html_file is not None and qrels_file is None:
        raise click.UsageError("--html needs --run, --topics and --qrels")
    if out.suffix == ".gz":
        raise click.UsageError("--out: a bank is not gzipped")
    settings.named_model()
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation import match_report, matching, material  # noqa: PLC0415
    from streamer.evaluation.files import write_whole  # noqa: PLC0415
    from streamer.evaluation.questions import ReplayError  # noqa: PLC0415

    encoder = load_model(settings, sides=["texts"])
    lists = probabilities = calibration = None
    with contextlib.closing(material.open_vectors(settings, encoder.model_id)) as store:
        bank = matching.draw_bank(store, encoder.model_id, clips=clips, seed=seed)
        if run_file is not None and topics_file is not None and qrels_file is not None:
            files = run_file, topics_file, qrels_file
            lists = _judged(settings, bank, encoder, store, files, is_paragraph, leave_out_unjudged)
            matching.check_enough(lists)
            calibration = matching.calibrate(lists.percentiles, lists.relevant, settings.pooling)
            probabilities = matching.unseen(lists.percentiles, lists.relevant, folds=folds)
    bank, content = written(bank.calibrated(calibration), seed=seed)
    try:
        write_whole(out, [content])
    except OSError as error:
        raise ReplayError(f"{out}: {error.strerror or error}") from error
    found = match_report.data(bank, seed=seed, lists=lists, probabilities=probabilities)
    names = [file.name for file in (run_file, qrels_file) if file is not None]
    _report(found, names, json_file, html_file)
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        echo(f"{match_report.summary(found)}; written to {out}")


def _report(found: dict[str, Any], names: Sequence[str], json_file: IO[str] | None, html_file: IO[str] | None) -> None:
    """Write the results; a bank without a calibration has no tables. ``names``: those of the run and the qrels."""
    import orjson  # noqa: PLC0415

    from streamer.evaluation import match_report  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415

    if html_file is not None:
        html_file.write(printable(render(match_report.page(found, *names)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if names and "-" not in {file.name for file in (json_file, html_file) if file}:
        console = Terminal()
        for table in match_report.terminal(found):
            console.print(table)


def _judged(
    settings: MatchCommandSettings,
    bank: Bank,
    encoder: Encoder,
    store: Store,
    files: tuple[Path, Path, Path],
    is_paragraph: bool,
    leave_out_unjudged: bool,
) -> Lists:
    """Rerank the judged topics of a run as the service would, and judge each list's best candidate."""
    from streamer.evaluation import matching, questions, replay, trec  # noqa: PLC0415

    run_file, topics_file, qrels_file = files
    qrels = trec.read_qrels(qrels_file, is_paragraph=is_paragraph)
    texts = trec.read_topics(topics_file, is_paragraph=is_paragraph)
    run = trec.matched(trec.read_run(run_file), qrels)
    judged = trec.Run({topic: ranking for topic, ranking in run.topics.items() if topic in qrels.topics}, run.tag)
    if not judged.topics:
        raise questions.ReplayError("no topic is in both the run and the qrels")
    answers = replay.offline(settings.method, questions.questions_of(judged, texts), encoder, store, bank)
    return matching.judged_lists(answers, qrels, leave_out_unjudged=leave_out_unjudged)
