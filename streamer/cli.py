"""The command line: ``streamer embed``, ``rerank``, ``topics``, ``dlq``, ``store``, ``broker``, ``demo``.

Flags of settings are generated from :mod:`streamer.settings`, so that each is described once. Exit codes: 0
done or stopped cleanly, 1 a fatal fault or a difference found, 2 a setting that cannot be used.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import itertools
import signal
import sys
import threading
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import orjson
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.table import Table

from streamer import __version__
from streamer.events import Reason, now
from streamer.settings import COMMANDS_OF, ENV_PREFIX, Settings, SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

CONFIG_OPTION = click.Option(
    ["--config"],
    type=click.Path(path_type=Path),
    envvar=f"{ENV_PREFIX}CONFIG",
    help="TOML file with settings; flags and variables win over it.",
)


class SettingsCommand(click.Command):
    """A command whose flags are the settings of :data:`COMMANDS_OF`; it is called with ``settings``."""

    def __init__(self, *args: Any, uses: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = COMMANDS_OF[uses]
        self.params += [CONFIG_OPTION, *(_option(name) for name in self._names)]

    def invoke(self, ctx: click.Context) -> Any:
        """Load the settings and hand them to the command instead of its raw flags."""
        flags = {name: ctx.params.pop(name) for name in self._names}
        if flags.get("kafka") is not None:
            flags["kafka"] = dict(flags["kafka"]) or None
        settings = load(flags, ctx.params.pop("config"))
        _configure_logs(settings)
        ctx.params["settings"] = settings
        return super().invoke(ctx)


def _option(name: str) -> click.Option:
    field = Settings.model_fields[name]
    default = "" if field.default_factory or field.default is None else f" [default: {field.default}]"
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description} ({ENV_PREFIX}{name.upper()}).{default}"
    if name == "kafka":
        return click.Option([flag], multiple=True, type=_Property(), metavar="PROPERTY=VALUE", help=text)
    choices = _choices(field.annotation)
    # The settings check every value alike, wherever it comes from; click's choices only serve completion.
    kind = _Open(choices) if choices else click.STRING
    return click.Option([flag], type=kind, metavar="|".join(choices) if choices else "TEXT", help=text)


def _choices(annotation: Any) -> tuple[str, ...]:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    literal = next((each for each in (annotation, *options) if typing.get_origin(each) is Literal), None)
    return typing.get_args(literal) if literal else ()


class _Open(click.Choice[str]):
    """Completes like a choice, and leaves the check to the settings."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


class _Property(click.ParamType[tuple[str, str]]):
    name = "property"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, text = str(value).partition("=")
        if not (key and equals):
            self.fail("expected PROPERTY=VALUE", param, ctx)
        return key, text


def _configure_logs(settings: Settings) -> None:
    from streamer import logs  # noqa: PLC0415 - completion and --version start without it

    logs.configure(settings)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="streamer")
def cli() -> None:
    """Rerank video search results frame by frame with CLIP, from Kafka to Kafka."""


@cli.command(cls=SettingsCommand, uses="embed")
def embed(settings: Settings) -> None:
    """Embed the frames of uploaded clips into the store (clips.uploaded -> clips.embedded)."""
    from streamer import service  # noqa: PLC0415 - torch takes seconds to import

    service.run_embedder(settings)


@cli.command(cls=SettingsCommand, uses="rerank")
def rerank(settings: Settings) -> None:
    """Rerank query results against the stored frames (query.results -> query.reranked)."""
    from streamer import service  # noqa: PLC0415

    service.run_reranker(settings)


@cli.group()
def topics() -> None:
    """Create, reconcile and compare the topics."""


_FILE_OPTION = click.option(
    "--file", type=click.Path(path_type=Path), help="Another topics.toml than the packaged one."
)


@topics.command("apply", cls=SettingsCommand, uses="topics")
@_FILE_OPTION
def topics_apply(settings: Settings, file: Path | None) -> None:
    """Create what is missing and reconcile what differs; says what it did. Exit 1 where something was refused."""
    from streamer.kafka import topic_files  # noqa: PLC0415
    from streamer.kafka import topics as admin  # noqa: PLC0415

    changes = admin.apply(settings, topic_files.load_specs(file))
    _print_lines(changes)
    sys.exit(1 if any(change.outcome is admin.Outcome.REFUSED for change in changes) else 0)


@topics.command("check", cls=SettingsCommand, uses="topics")
@_FILE_OPTION
def topics_check(settings: Settings, file: Path | None) -> None:
    """Compare the cluster's topics with the file, changing nothing. Exit 1 where they differ."""
    from streamer.kafka import topic_files  # noqa: PLC0415
    from streamer.kafka import topics as admin  # noqa: PLC0415

    differences = admin.check(settings, topic_files.load_specs(file))
    _print_lines(differences or ["all topics are as they should be"])
    sys.exit(1 if differences else 0)


@cli.group()
def dlq() -> None:
    """Look at dead letters, and put them back once what was wrong is put right.

    TOPIC is the input topic, clips.uploaded or query.results, without its prefix.
    """


class _Moment(click.ParamType[dt.datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        from streamer.kafka.dlq import parse_time  # noqa: PLC0415

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
    settings: Settings,
    topic: str,
    records: bool,
    limit: int | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Count the dead letters of TOPIC by reason."""
    from streamer.kafka import dlq_report  # noqa: PLC0415
    from streamer.kafka.dlq import DeadLetterTopic, Filter  # noqa: PLC0415

    wanted = Filter(**filters)
    with contextlib.closing(DeadLetterTopic(settings, topic)) as dead_letters:
        letters = itertools.islice(filter(wanted.takes, dead_letters.letters(dead_letters.spans())), limit)
        show = dlq_report.records if records else dlq_report.summary
        show(letters, title=dead_letters.name, as_json=as_json)


@_dlq_command("show", limit=10)
@click.argument("partition", type=click.IntRange(min=0), required=False)
@click.argument("offset", type=click.IntRange(min=0), required=False)
@click.option("--key", help="Those with this key: a clip's or a query's id.")
def dlq_show(
    settings: Settings,
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
    from streamer.kafka import dlq_report  # noqa: PLC0415
    from streamer.kafka.dlq import DeadLetterTopic, Filter, Span  # noqa: PLC0415

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
        if not dlq_report.details(itertools.islice(filter(wanted.takes, letters), limit), as_json=as_json):
            raise click.ClickException(f"no such dead letter in {dead_letters.name}")


@_dlq_command("redrive")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def dlq_redrive(
    settings: Settings, topic: str, limit: int | None, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """Copy dead letters back into TOPIC, each exactly once, however often it is run or killed.

    Truncated ones stay, since their value is lost, and so does what was redriven before. One redrive of a topic
    takes over from another that is under way.
    """
    from streamer.kafka import dlq_report, redrive  # noqa: PLC0415
    from streamer.kafka.dlq import Filter  # noqa: PLC0415

    report = redrive.redrive(settings, topic, Filter(**filters), limit=limit, dry_run=dry_run)
    dlq_report.redriven(report, topic=settings.topic(topic), dry_run=dry_run, as_json=as_json)


@cli.group()
def store() -> None:
    """Look into the store of frame embeddings."""


@store.command("stats", cls=SettingsCommand, uses="store")
def store_stats(settings: Settings) -> None:
    """Show how many clips of which models are stored."""
    from streamer.store import open_existing  # noqa: PLC0415

    with contextlib.closing(open_existing(settings.store)) as opened:
        figures = opened.stats()
    table = Table("model", "clips", title=settings.store)
    for model_id, clips in figures.models.items():
        table.add_row(model_id, f"{clips:,}")
    console = Console()
    console.print(table)
    console.print(f"{figures.tombstones:,} tombstones, {figures.bytes:,} bytes on disk")


@store.command("get", cls=SettingsCommand, uses="store")
@click.argument("clip_id")
@click.option("--model-id", help="Whose record; without it, the record of each model that has one.")
def store_get(settings: Settings, clip_id: str, model_id: str | None) -> None:
    """Show the record of CLIP_ID as JSON: version, precision, its vectors' times. Exit 1 where there is none."""
    from streamer.store import open_existing  # noqa: PLC0415

    with contextlib.closing(open_existing(settings.store)) as opened:
        models = [model_id] if model_id else list(opened.stats().models)
    found = False
    for each in models:
        with contextlib.closing(open_existing(settings.store, model_id=each)) as opened, opened.read([clip_id]) as read:
            record = read[0]
            if record is None:
                continue
            found = True
            vectors, dim = record.matrix.shape
            described = {
                "clip_id": clip_id,
                "model_id": each,
                "uploaded_at": record.uploaded_at,
                "duration_ms": record.duration_ms,
                "vectors": vectors,
                "dim": dim,
                "precision": str(record.matrix.dtype),
                "times_ms": record.times_ms.tolist(),
            }
            click.echo(orjson.dumps(described, option=orjson.OPT_UTC_Z).decode())
    if not found:
        raise click.ClickException(f"{clip_id} is not in {settings.store}")


@cli.command()
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True, help="How many brokers.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=9092, show_default=True, help="The first broker's port."
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Folder to keep data in; else temporary."
)
def broker(brokers: str, port: int, data: Path | None) -> None:
    """Run a real local Apache Kafka until Ctrl-C (needs the extra: cliprerank-streamer[broker])."""
    from streamer.kafka.broker import LocalKafka  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with LocalKafka(brokers=int(brokers), port=port, data_dir=data) as kafka:
        click.echo(f"Kafka is up at {kafka.bootstrap_servers}; Ctrl-C stops it")
        stop.wait()


@cli.command(cls=SettingsCommand, uses="demo")
@click.option(
    "--clips", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of your own videos."
)
@click.option(
    "--queries", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Your queries, one a line."
)
@click.option(
    "--report", type=click.Path(path_type=Path), default=Path("demo-report"), show_default=True, help="Folder."
)
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
def demo(settings: Settings, **options: Any) -> None:
    """Show the whole path: uploads embedded, queries reranked, measured and pictured.

    Runs on a local Kafka of its own unless --bootstrap-servers names one.
    """
    from streamer.demo import run  # noqa: PLC0415

    own_broker = "bootstrap_servers" not in settings.model_fields_set
    run.run(settings, bootstrap=None if own_broker else settings.bootstrap_servers, **options)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL, e.g. eval "$(streamer completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "streamer", "_STREAMER_COMPLETE").source())


def _print_lines(lines: Sequence[object]) -> None:
    for line in lines:
        click.echo(str(line))


def main() -> None:
    """Run the command line; settings and setup errors end in one line and exit code 2."""
    try:
        cli()
    except SettingsError as error:
        click.echo(f"streamer: {error}", err=True)
        sys.exit(2)
    except _expected_errors() as error:
        click.echo(f"streamer: {error}", err=True)
        sys.exit(1)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Return the errors whose message says all, of those modules that the command has imported."""
    named = {
        "streamer.kafka.topics": "TopicsError",
        "streamer.kafka.jars": "BrokerError",
        "streamer.kafka.client": "PublishError",
        "streamer.kafka.dlq": "DeadLetterError",
        "streamer.store": "StoreError",
        "streamer.store.protocol": "StoreUnavailableError",
        "streamer.demo.run": "DemoError",
        "streamer.demo.services": "ServiceError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in named.items() if module in sys.modules)
