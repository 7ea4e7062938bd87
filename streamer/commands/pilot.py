"""``streamer pilot``: measures what reranking would change for a platform's own queries, and gives a decision."""

from __future__ import annotations

import contextlib
import itertools
from typing import IO, TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand
from streamer.commands.replay import FILE, recorded, recorded_options
from streamer.terminal import Terminal, echo, printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.evaluation.pilot.clicks import Clicks
    from streamer.events import QueryReranked, QueryResults
    from streamer.settings import Connection, PilotSettings

_OUTPUT = click.File("w", encoding="utf-8", lazy=True)


@click.command(cls=SettingsCommand, uses="pilot", short_help="Report what reranking changes for recorded queries.")
@recorded_options
@click.option(
    "--answers", type=FILE, help="Recorded query.reranked events of a running service, instead of query.results."
)
@click.option("--model-id", help="With --answers and --answers-from-topic: only the answers of this model.")
@click.option(
    "--answers-from-topic", is_flag=True, help="Read the events of a running service from the topic query.reranked."
)
@click.option(
    "--clicks",
    type=FILE,
    help="Clicks, one JSON object per line: query_id, clip_id, clicked_at, and session_id if known.",
)
@click.option("--clicks-topic", help="Full name of a topic with clicks.")
@click.option(
    "--top", type=click.IntRange(1, 5_000), default=100, show_default=True, help="Number of first results to compare."
)
@click.option(
    "--most-ms",
    type=float,
    default=500.0,
    show_default=True,
    help="Limit for the 95th percentile of the latency, in ms.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="Largest tolerated loss of the mean discount 1 / log2(1 + rank) of what users would click.",
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page to this file.")
def pilot(
    settings: PilotSettings,
    events: Path | None,
    from_topic: bool,
    limit: int | None,
    answers: Path | None,
    answers_from_topic: bool,
    model_id: str | None,
    clicks: Path | None,
    clicks_topic: str | None,
    top: int,
    most_ms: float,
    margin: float,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Report what reranking changes for recorded queries: order, coverage, latency, clicks, and a decision.

    Events of query.results (--events, --from-topic) are reranked by this command. Events of query.reranked (--answers,
    --answers-from-topic) are the results of a running service, with its latency, all of one consumer group and one
    model: --group-suffix and --model-id choose. docs/pilot.md says what to record and
    for how long. Needs the extra: cliprerank-streamer[evaluation].
    """
    if (events is not None) + from_topic + (answers is not None) + answers_from_topic != 1:
        raise click.UsageError("give exactly one of --events, --from-topic, --answers and --answers-from-topic")
    served = answers is not None or answers_from_topic
    answered = _answers(settings, events, from_topic, answers, answers_from_topic, model_id)
    import orjson  # noqa: PLC0415

    from streamer.evaluation.page import render  # noqa: PLC0415
    from streamer.evaluation.pilot import report  # noqa: PLC0415
    from streamer.evaluation.pilot.clicks import Clicks  # noqa: PLC0415
    from streamer.evaluation.pilot.decision import Limits, decide  # noqa: PLC0415
    from streamer.evaluation.pilot.figures import Pilot  # noqa: PLC0415

    clicked = Clicks()
    if clicks is not None:
        clicked.read(clicks)
    if clicks_topic is not None:
        _read_topic(settings, clicks_topic, clicked)
    figures = Pilot(top, clicked)
    for each in itertools.islice(answered, limit):
        figures.add(each, served=served)
    if not figures.queries:
        raise click.ClickException("there are no queries to report on")
    found = decide(figures.data(), Limits(latency_ms=most_ms, margin=margin))
    if html_file is not None:
        html_file.write(printable(render(report.page(found)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        echo(found["sentence"])
        console = Terminal()
        for table in report.terminal(found):
            console.print(table)


def _answers(
    settings: PilotSettings,
    events: Path | None,
    from_topic: bool,
    answers: Path | None,
    answers_from_topic: bool,
    model_id: str | None,
) -> Iterator[QueryReranked]:
    from streamer.evaluation import questions  # noqa: PLC0415

    if answers is not None:
        return questions.answers_of_file(answers, model_id)
    if answers_from_topic:
        return questions.answers_of_topic(settings, model_id)
    settings.named_model()  # a missing model is reported before anything is read
    return _reranked(settings, recorded(settings, events, from_topic))


def _reranked(settings: PilotSettings, asked: Iterator[QueryResults]) -> Iterator[QueryReranked]:
    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation import material  # noqa: PLC0415
    from streamer.evaluation.replay import offline  # noqa: PLC0415

    encoder = load_model(settings, sides=["texts"])
    with contextlib.closing(material.open_vectors(settings, encoder.model_id)) as store:
        yield from offline(settings.method, asked, encoder, store)


def _read_topic(settings: Connection, name: str, clicked: Clicks) -> None:
    from streamer.kafka.readers.topic_reader import TopicReader  # noqa: PLC0415
    from streamer.topology import REPLAY  # noqa: PLC0415

    with contextlib.closing(TopicReader(settings, name, REPLAY)) as reader:
        for span in reader.spans():
            for record in reader.records(span):
                clicked.add(record.value or b"", record.place)
