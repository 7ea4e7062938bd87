"""``streamer replay``: result lists of before, reranked now."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamer.commands.flags import SettingsCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.events import QueryResults
    from streamer.settings import Connection, ReplaySettings

F = TypeVar("F", bound="Callable[..., Any]")

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def recorded_options(command: F) -> F:
    """Let a command take events that were recorded."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="At most so many queries, the first ones."),
        click.option("--from-topic", is_flag=True, help="What the topic query.results holds now."),
        click.option("--events", type=FILE, help="Recorded query.results events, one JSON object a line."),
    ):
        command = option(command)
    return command


def recorded(settings: Connection, events: Path | None, from_topic: bool) -> Iterator[QueryResults]:
    """Read the events that :func:`recorded_options` name, of which there must be one."""
    from streamer.evaluation import questions  # noqa: PLC0415

    return questions.events_of_topic(settings) if from_topic or events is None else questions.events_of_file(events)


@click.command(cls=SettingsCommand, uses="replay")
@click.option("--run", "run_file", type=FILE, help="A TREC run: what the engine returned; with --topics.")
@click.option("--topics", "topics_file", type=FILE, help="The text of each topic: topic<TAB>text, or NIST's XML.")
@recorded_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The TREC run to write.")
@click.option("--tag", default="streamer", show_default=True, help="The run's name, in its last column.")
@click.option("--through-kafka", is_flag=True, help="Ask the running reranker, instead of doing its work here.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each answer of the running reranker.",
)
def replay(
    settings: ReplaySettings,
    run_file: Path | None,
    topics_file: Path | None,
    events: Path | None,
    from_topic: bool,
    limit: int | None,
    out: Path,
    tag: str,
    through_kafka: bool,
    timeout: float,
) -> None:
    """Rerank result lists of before against the stored frames, and write a TREC run.

    They come from a TREC run and its topics, from a file of query.results events, or from the topic. Offline and
    through Kafka give the same run to the last digit, where both compute texts in the same arithmetic (--dtype,
    --threads).
    """
    if (run_file is not None) + (events is not None) + from_topic != 1:
        raise click.UsageError("one of --run, --events and --from-topic says what is to be reranked")
    if (run_file is None) != (topics_file is None):
        raise click.UsageError("--run and --topics belong together")
    if not through_kafka:
        settings.named_model()
    from streamer.evaluation import questions, trec  # noqa: PLC0415
    from streamer.evaluation import replay as replays  # noqa: PLC0415

    with contextlib.ExitStack() as cleanup:
        asked: Iterator[QueryResults]
        if run_file is not None and topics_file is not None:
            asked = questions.questions_of(trec.read_run(run_file), trec.read_topics(topics_file))
        else:
            asked = recorded(settings, events, from_topic)
        asked = itertools.islice(asked, limit)
        if through_kafka:
            answers = replays.through_kafka(settings, asked, required=_given(settings), timeout=timeout)
        else:
            from streamer.encoders import load_model  # noqa: PLC0415
            from streamer.evaluation import material  # noqa: PLC0415

            encoder = load_model(settings, sides=["texts"])
            store = cleanup.enter_context(contextlib.closing(material.open_vectors(settings, encoder.model_id)))
            answers = replays.offline(settings.method, asked, encoder, store)
        run = replays.Replay(answers)
        trec.write_run(out, trec.Run(run.topics, tag))
    click.echo(run.summary() + f"; written to {out}")


def _given(settings: ReplaySettings) -> dict[str, object]:
    """Return the method's parameters that were given, not those that are left at their defaults."""
    return {name: value for name, value in asdict(settings.method).items() if name in settings.model_fields_set}
