"""``streamer dlq``: dead letters counted, shown and put back."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import itertools
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamer.commands.flags import SettingsCommand
from streamer.events import Reason, now

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.settings import TopicsSettings

F = TypeVar("F", bound="Callable[..., Any]")


@click.group()
def dlq() -> None:
    """Look at dead letters, and put them back once what was wrong is put right.

    TOPIC is the input topic, clips.uploaded or query.results, without its prefix.
    """


class _Moment(click.ParamType[dt.datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        from streamer.kafka.dlq.letters import parse_time  # noqa: PLC0415

        try:
            return value if isinstance(value, dt.datetime) else parse_time(str(value), now())
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _dlq_command(name: str, *, limit: int | None = None) -> Callable[[F], F]:
    """Make a command of the group with what all of them take: TOPIC, the filters, --json."""
    parts = (
        dlq.command(name, cls=SettingsCommand, uses="topics"),
        click.argument("topic", type=click.Choice(["clips.uploaded", "query.results"])),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice([reason.value for reason in Reason]),
            metavar="REASON",
            help="Only those with this dlq.reason; may be given several times.",
        ),
        click.option("--since", type=_Moment(), help="Only those not before: RFC 3339, or an age such as 2h or 3d."),
        click.option("--until", type=_Moment(), help="Only those before: RFC 3339, or an age."),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            default=limit,
            show_default=True,
            help="At most so many, in the topic's order.",
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON for scripts."),
    )
    return lambda function: functools.reduce(lambda wrapped, part: part(wrapped), reversed(parts), function)


@_dlq_command("list")
@click.option("--records", is_flag=True, help="Show the single dead letters; with --json one line each.")
def dlq_list(
    settings: TopicsSettings,
    topic: str,
    records: bool,
    limit: int | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Count the dead letters of TOPIC by reason."""
    from streamer.kafka.dlq import report  # noqa: PLC0415
    from streamer.kafka.dlq.letters import DeadLetterTopic, Filter  # noqa: PLC0415

    wanted = Filter(**filters)
    with contextlib.closing(DeadLetterTopic(settings, topic)) as dead_letters:
        letters = itertools.islice(filter(wanted.takes, dead_letters.letters(dead_letters.spans())), limit)
        show = report.records if records else report.summary
        show(letters, title=dead_letters.name, as_json=as_json)


@_dlq_command("show", limit=10)
@click.argument("partition", type=click.IntRange(min=0), required=False)
@click.argument("offset", type=click.IntRange(min=0), required=False)
@click.option("--key", help="Those with this key: a clip's or a query's id.")
def dlq_show(
    settings: TopicsSettings,
    topic: str,
    partition: int | None,
    offset: int | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """Show the dead letter of TOPIC at PARTITION and OFFSET, or those that the filters take, with headers and value.

    Exit 1 where there is none.
    """
    from streamer.kafka.dlq import report  # noqa: PLC0415
    from streamer.kafka.dlq.letters import DeadLetterTopic, Filter  # noqa: PLC0415
    from streamer.kafka.readers.topic_reader import Span  # noqa: PLC0415

    if partition is not None and offset is None:
        raise click.UsageError("PARTITION needs an OFFSET")
    wanted = Filter(**filters)
    with contextlib.closing(DeadLetterTopic(settings, topic)) as dead_letters:
        spans = dead_letters.spans()
        if partition is not None and offset is not None:
            # What was redriven is said behind a dead letter, so the rest of the partition is read as well.
            spans = [
                Span(partition, max(offset, each.begin), each.end) for each in spans if each.partition == partition
            ]
        letters = dead_letters.letters(spans)
        if offset is not None:
            letters = (letter for letter in itertools.islice(letters, 1) if letter.record.offset == offset)
        if not report.details(itertools.islice(filter(wanted.takes, letters), limit), as_json=as_json):
            raise click.ClickException(f"no such dead letter in {dead_letters.name}")


@_dlq_command("redrive")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def dlq_redrive(
    settings: TopicsSettings, topic: str, limit: int | None, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """Copy dead letters back into TOPIC, each exactly once, however often it is run or killed.

    Truncated ones stay, since their value is lost, and so does what was redriven before. One redrive of a topic
    takes over from another that is under way.
    """
    from streamer.kafka.dlq import redrive, report  # noqa: PLC0415 - completion starts without the Kafka client
    from streamer.kafka.dlq.letters import Filter  # noqa: PLC0415

    done = redrive.redrive(settings, topic, Filter(**filters), limit=limit, dry_run=dry_run)
    report.redriven(done, topic=settings.topic(topic), dry_run=dry_run, as_json=as_json)
