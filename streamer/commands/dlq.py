"""``streamer dlq``: list, show and redrive dead letters."""

from __future__ import annotations

import contextlib
import functools
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamer.commands.flags import SettingsCommand, Time
from streamer.events import Reason
from streamer.topology import INPUT_TOPICS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.settings import TopicsSettings

F = TypeVar("F", bound="Callable[..., Any]")


@click.group(short_help="List, show and redrive dead letters.")
def dlq() -> None:
    """List and show dead letters, and redrive them once the cause is fixed.

    TOPIC is the input topic, clips.uploaded or query.results, without its prefix.
    """


def _dlq_command(name: str, short_help: str, *, limit: int | None = None) -> Callable[[F], F]:
    """Make a command of the group with the shared parameters: TOPIC, the filters, --json."""
    parts = (
        dlq.command(name, cls=SettingsCommand, uses="topics", short_help=short_help),
        click.argument("topic", type=click.Choice(INPUT_TOPICS)),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice([reason.value for reason in Reason]),
            metavar="REASON",
            help="Only dead letters with this dlq.reason; may be repeated.",
        ),
        click.option(
            "--group",
            metavar="GROUP",
            help="Only dead letters that this consumer group wrote, by its full name (header dlq.group) "
            "[default: the group of --group-suffix, --group-embed or --group-rerank, if given, else all].",
        ),
        click.option(
            "--since", type=Time(), help="Only dead letters from this time on: RFC 3339, or an age such as 2h or 3d."
        ),
        click.option("--until", type=Time(), help="Only dead letters before this time: RFC 3339, or an age."),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            default=limit,
            show_default=True,
            help="Maximum number of dead letters, in the topic's order.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts."),
    )
    return lambda function: functools.reduce(lambda wrapped, part: part(wrapped), reversed(parts), function)


def _by_group(settings: TopicsSettings, topic: str, filters: dict[str, Any]) -> dict[str, Any]:
    """Add the group that the settings choose, if none is named."""
    (service,) = (each for each in SERVICES.values() if each.input == topic)
    return {**filters, "group": filters["group"] or settings.chosen_group(service.group)}


@_dlq_command("list", "Count dead letters by group and reason.")
@click.option("--records", is_flag=True, help="List each dead letter; with --json one object per line.")
def dlq_list(
    settings: TopicsSettings,
    topic: str,
    records: bool,
    limit: int | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Count the dead letters of TOPIC by the group that wrote them and by reason."""
    from streamer.kafka.dlq import report  # noqa: PLC0415
    from streamer.kafka.dlq.letters import DeadLetterTopic, Filter  # noqa: PLC0415

    wanted = Filter(**_by_group(settings, topic, filters))
    with contextlib.closing(DeadLetterTopic(settings, topic)) as dead_letters:
        letters = itertools.islice(filter(wanted.matches, dead_letters.letters(dead_letters.spans())), limit)
        show = report.records if records else report.summary
        show(letters, title=dead_letters.name, as_json=as_json)


@_dlq_command("show", "Show dead letters with headers and value.", limit=10)
@click.argument("partition", type=click.IntRange(min=0), required=False)
@click.argument("offset", type=click.IntRange(min=0), required=False)
@click.option("--key", help="Only dead letters with this key: a clip id or a query id.")
def dlq_show(
    settings: TopicsSettings,
    topic: str,
    partition: int | None,
    offset: int | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """Show the dead letter of TOPIC at PARTITION and OFFSET, or all that match the filters, with headers and value.

    The exit code is 1 if there is none.
    """
    from streamer.kafka.dlq import report  # noqa: PLC0415
    from streamer.kafka.dlq.letters import DeadLetterTopic, Filter  # noqa: PLC0415
    from streamer.kafka.readers.topic_reader import Span  # noqa: PLC0415

    if partition is not None and offset is None:
        raise click.UsageError("PARTITION needs an OFFSET")
    wanted = Filter(**_by_group(settings, topic, filters))
    with contextlib.closing(DeadLetterTopic(settings, topic)) as dead_letters:
        spans = dead_letters.spans()
        if partition is not None and offset is not None:
            # The marker of a redriven dead letter comes after it, so the rest of the partition is read as well.
            spans = [
                Span(partition, max(offset, each.begin), each.end) for each in spans if each.partition == partition
            ]
        letters = dead_letters.letters(spans)
        if offset is not None:
            letters = (letter for letter in itertools.islice(letters, 1) if letter.record.offset == offset)
        if not report.details(itertools.islice(filter(wanted.matches, letters), limit), as_json=as_json):
            raise click.ClickException(f"no such dead letter in {dead_letters.name}")


@_dlq_command("redrive", "Copy dead letters back into their topic, once each.")
@click.option(
    "--to-group",
    metavar="GROUP",
    help="Full name of the consumer group that is to process the copies in query.results.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
def dlq_redrive(
    settings: TopicsSettings,
    topic: str,
    limit: int | None,
    to_group: str | None,
    dry_run: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Copy dead letters back into TOPIC, each exactly once, even if this command is killed or run again.

    If several groups read TOPIC, only the group that wrote a dead letter processes its copy, or the one that --to-group
    names. If that group has no members and no committed offsets, nothing is redriven (exit code 2). In clips.uploaded,
    which is compacted, all groups process it, and those that have the clip already store the same record again.

    Truncated dead letters are skipped, since their value is lost, and so are those redriven before. A new redrive of a
    topic takes over from one that is running.
    """
    from streamer.kafka.dlq import redrive, report  # noqa: PLC0415 - completion starts without the Kafka client
    from streamer.kafka.dlq.letters import Filter  # noqa: PLC0415

    wanted = Filter(**_by_group(settings, topic, filters))
    done = redrive.redrive(settings, topic, wanted, limit=limit, to_group=to_group, dry_run=dry_run)
    report.redriven(done, topic=settings.topic(topic), dry_run=dry_run, as_json=as_json)
