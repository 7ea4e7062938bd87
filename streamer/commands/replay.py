"""``streamer replay``: reranks recorded result lists."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamer.commands.evaluate import paragraph_option
from streamer.commands.flags import SettingsCommand
from streamer.terminal import echo
from streamer.topology import REPLAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from streamer.events import QueryResults
    from streamer.settings import Connection, ReplaySettings
    from streamer.topology import Tool

F = TypeVar("F", bound="Callable[..., Any]")

FILE = click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
"""An input; ``-`` is standard input."""


def recorded_options(command: F) -> F:
    """Add the options for recorded events to a command."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Use only the first queries, at most this many."),
        click.option("--from-topic", is_flag=True, help="Use the events that are in the topic query.results now."),
        click.option("--events", type=FILE, help="File with recorded query.results events, one JSON object per line."),
    ):
        command = option(command)
    return command


def recorded(
    settings: Connection, events: Path | None, from_topic: bool, tool: Tool = REPLAY
) -> Iterator[QueryResults]:
    """Read the events from the source given by :func:`recorded_options`; exactly one must be given.

    ``tool`` is the command that reads.
    """
    from streamer.evaluation import questions  # noqa: PLC0415

    if from_topic or events is None:
        return questions.events_of_topic(settings, tool=tool)
    return questions.events_of_file(events)


@click.command(cls=SettingsCommand, uses="replay", short_help="Rerank recorded result lists, and write a TREC run.")
@click.option("--run", "run_file", type=FILE, help="TREC run of the engine; needs --topics.")
@click.option(
    "--topics",
    "topics_file",
    type=FILE,
    help="Text of each topic: topic<TAB>text, or NIST's XML, or captions in CSV or JSON.",
)
@paragraph_option()
@recorded_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="TREC run to write.")
@click.option("--tag", default="streamer", show_default=True, help="Name of the run, in its last column.")
@click.option(
    "--through-kafka",
    is_flag=True,
    help="Send the queries to the running reranker instead of reranking in this process.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for each result of the running reranker.",
)
def replay(
    settings: ReplaySettings,
    run_file: Path | None,
    topics_file: Path | None,
    is_paragraph: bool,
    events: Path | None,
    from_topic: bool,
    limit: int | None,
    out: Path,
    tag: str,
    through_kafka: bool,
    timeout: float,
) -> None:
    """Rerank recorded result lists against the stored frames, and write a TREC run.

    The lists come from a TREC run and its topics, from a file of query.results events, or from the topic. Reranking
    offline and through Kafka gives identical runs if both encode text with the same precision and number of threads
    (--dtype, --threads). If several consumer groups answer, --group-suffix chooses one.
    """
    if (run_file is not None) + (events is not None) + from_topic != 1:
        raise click.UsageError("give exactly one of --run, --events and --from-topic")
    if (run_file is None) != (topics_file is None):
        raise click.UsageError("--run and --topics must be given together")
    if not through_kafka:
        settings.named_model()
    from streamer.evaluation import questions, trec  # noqa: PLC0415
    from streamer.evaluation import replay as replays  # noqa: PLC0415

    with contextlib.ExitStack() as cleanup:
        asked: Iterable[QueryResults]
        if run_file is not None and topics_file is not None:
            topics = trec.read_topics(topics_file, is_paragraph=is_paragraph)
            asked = questions.questions_of(trec.read_run(run_file), topics)
        else:
            asked = recorded(settings, events, from_topic)
        asked = replays.writable(itertools.islice(asked, limit), out, tag)
        if through_kafka:
            answers = replays.through_kafka(settings, asked, required=_given(settings), timeout=timeout)
        else:
            from streamer.encoders import load_model  # noqa: PLC0415
            from streamer.evaluation import material  # noqa: PLC0415

            encoder = load_model(settings, sides=["texts"])
            store = cleanup.enter_context(contextlib.closing(material.open_vectors(settings, encoder.model_id)))
            bank = settings.read_match(encoder.model_id, encoder.dim)
            answers = replays.offline(settings.method, asked, encoder, store, bank)
        run = replays.Replay(answers)
        trec.write_run(out, trec.Run(run.topics, tag))
    echo(run.summary() + f"; written to {out}")


def _given(settings: ReplaySettings) -> dict[str, object]:
    """Return the method's parameters that were set explicitly."""
    return {name: value for name, value in asdict(settings.method).items() if name in settings.model_fields_set}
