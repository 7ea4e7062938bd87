"""``streamer audit``: which groups of clips users see, before and after reranking."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand
from streamer.commands.replay import FILE, recorded, recorded_options
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.evaluation.audit.figures import Audit
    from streamer.evaluation.audit.groups import Catalogue
    from streamer.evaluation.audit.lists import Answers, Runs
    from streamer.evaluation.audit.sensitivity import Masking
    from streamer.events import QueryReranked
    from streamer.settings import AuditSettings, Connection

_OUTPUT = click.File("w", encoding="utf-8", lazy=True)
top_option = click.option(
    "--top",
    type=click.IntRange(1, 5_000),
    default=10,
    show_default=True,
    help="Number of first results that users see.",
)
"""The ranks that count in an audit, here and in ``streamer exposure``."""


@click.command(
    cls=SettingsCommand, uses="audit", short_help="Report which groups of clips reranking shows more or less."
)
@click.option("--answers", type=FILE, help="Recorded query.reranked events, one JSON object per line.")
@click.option("--answers-from-topic", is_flag=True, help="Use the events that are in the topic query.reranked now.")
@click.option("--model-id", help="With --answers and --answers-from-topic: only the answers of this model.")
@recorded_options
@click.option("--run", "run_file", type=FILE, help="TREC run of the engine; needs --reranked.")
@click.option("--reranked", "reranked_file", type=FILE, help="TREC run of the same topics after reranking.")
@click.option(
    "--attributes",
    "attributes_file",
    type=FILE,
    help="Attributes of the clips: CSV with a column clip_id, or clips.uploaded events, one JSON object per line.",
)
@click.option(
    "--attributes-from-topic",
    is_flag=True,
    help="Use the uploads and deletes that are in the topic clips.uploaded now.",
)
@click.option(
    "--attribute",
    "names",
    multiple=True,
    metavar="NAME",
    help="An attribute to audit; may be repeated. [default: all that have at most --groups values]",
)
@click.option(
    "--groups",
    "most",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    help="Most groups of one attribute; the clips of all further values are one group.",
)
@top_option
@click.option(
    "--videos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the clips' files, named by clip id: some answers are made once more from masked frames.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 100_000),
    default=1_000,
    show_default=True,
    help="With --videos: most clips that are decoded anew.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="With --videos: seed of the draws.")
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page to this file.")
def audit(
    settings: AuditSettings,
    answers: Path | None,
    answers_from_topic: bool,
    model_id: str | None,
    events: Path | None,
    from_topic: bool,
    limit: int | None,
    run_file: Path | None,
    reranked_file: Path | None,
    attributes_file: Path | None,
    attributes_from_topic: bool,
    names: Sequence[str],
    most: int,
    top: int,
    videos: Path | None,
    sample: int,
    seed: int,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Report the exposure of groups of clips by their attributes, before and after reranking.

    The lists are query.reranked events (--answers, --answers-from-topic), which hold both orders, or two TREC runs
    (--run, --reranked). With --events or --from-topic, the events are joined with those of query.results by their
    query_id: queries without an answer are counted, and answers to another list are left out. With --videos, the model
    that answered is loaded, and the figures are compared with what masks do to them. docs/fairness.md explains it.
    """
    given = (answers is not None) + answers_from_topic + (run_file is not None)
    _check(given == 1, "give exactly one of --answers, --answers-from-topic and --run")
    _check((run_file is None) == (reranked_file is None), "--run and --reranked must be given together")
    joined = (events is not None) + from_topic
    _check(joined <= (run_file is None), "give at most one of --events and --from-topic, and neither with --run")
    given = (attributes_file is not None) + attributes_from_topic
    _check(given == 1, "give exactly one of --attributes and --attributes-from-topic")
    _check(videos is None or run_file is None, "--videos needs answers: a run has no method and no queries")
    if videos is not None:
        settings.named_model()
    import orjson  # noqa: PLC0415

    from streamer.evaluation.audit import report  # noqa: PLC0415
    from streamer.evaluation.audit.figures import Audit, chosen  # noqa: PLC0415
    from streamer.evaluation.audit.sensitivity import Drawn  # noqa: PLC0415
    from streamer.evaluation.audit.verdict import decide  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415

    catalogue = _catalogue(settings, attributes_file, names)
    attributes, passed_over = chosen(catalogue, names, most)
    if run_file is not None and reranked_file is not None:
        lists: Answers | Runs = _runs(run_file, reranked_file)
    else:
        lists = _answers(settings, answers, model_id, events, from_topic)
    figures = Audit(catalogue, attributes, top=top, most=most)
    drawn = Drawn(itertools.islice(lists, limit), seed)
    figures.add(drawn)
    if not figures.queries:
        raise click.ClickException("there are no queries to report on")
    masking = (
        None if videos is None else _masking(settings, drawn.answers(), figures, catalogue, top, videos, sample, seed)
    )
    found = decide({**figures.data(masking), "left_out": dict(lists.left_out), "passed_over": passed_over})
    if html_file is not None:
        html_file.write(printable(render(report.page(found)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        for sentence in (found["sentence"], *found["cautions"]):
            echo(sentence)
        console = Terminal()
        for table in report.terminal(found):
            console.print(table)


def _masking(
    settings: AuditSettings,
    answers: Sequence[QueryReranked],
    figures: Audit,
    catalogue: Catalogue,
    top: int,
    videos: Path,
    sample: int,
    seed: int,
) -> Masking:
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation.audit import sensitivity  # noqa: PLC0415
    from streamer.evaluation.masks.anew import Anew, files_of  # noqa: PLC0415
    from streamer.evaluation.replay import TextVectors  # noqa: PLC0415
    from streamer.video.sampling.sample import Sampling  # noqa: PLC0415

    encoder = load_model(settings)
    if others := {each.model_id for each in answers} - {encoder.model_id}:
        raise click.ClickException(
            f"the answers are of the model {', '.join(sorted(others))}, this one is {encoder.model_id}; name theirs "
            "by --model and --pretrained, or choose answers by --model-id"
        )
    files = files_of(videos, {result.clip_id for answer in answers for result in answer.results})
    chosen, clips = sensitivity.chosen(answers, files, sample)
    texts = TextVectors(encoder)
    anew = Anew(
        encoder,
        Sampling(settings.frame_interval, settings.max_frames),
        seed=seed,
        sandbox=settings.decoder_sandbox,
    )
    found = None
    if chosen:
        with Terminal(stderr=True).status(f"Decoding {len(clips)} clips with masked frames"):
            found = sensitivity.measure(
                chosen,
                clips,
                texts=[texts.of(each.query) for each in chosen],
                files=files,
                anew=anew,
                groups=figures.groups,
                catalogue=catalogue,
                top=top,
            )
    if found is None:
        raise click.ClickException(f"{videos}: no file is named as a clip of an answer and can be decoded")
    return found


def _check(is_met: bool, what: str) -> None:
    if not is_met:
        raise click.UsageError(what)


def _catalogue(settings: Connection, path: Path | None, names: Sequence[str]) -> Catalogue:
    from streamer.evaluation.audit import attributes  # noqa: PLC0415

    return attributes.of_topic(settings, names) if path is None else attributes.of_file(path, names)


def _runs(engine: Path, reranked: Path) -> Runs:
    from streamer.evaluation.audit.lists import Runs  # noqa: PLC0415
    from streamer.evaluation.trec import read_run  # noqa: PLC0415

    return Runs(read_run(engine), read_run(reranked))


def _answers(
    settings: Connection, path: Path | None, model_id: str | None, events: Path | None, from_topic: bool
) -> Answers:
    from streamer.evaluation import questions  # noqa: PLC0415
    from streamer.evaluation.audit.lists import Answers, Asked  # noqa: PLC0415
    from streamer.topology import AUDIT  # noqa: PLC0415

    asked = Asked(recorded(settings, events, from_topic, AUDIT)) if from_topic or events is not None else None
    if path is not None:
        return Answers(questions.answers_of_file(path, model_id), asked)
    return Answers(questions.answers_of_topic(settings, model_id, tool=AUDIT), asked)
