"""The command line; command groups and the flags made from settings are in :mod:`streamer.commands`.

Exit codes: 0 success or clean stop, 1 fatal error or a difference found, 2 invalid setting or usage.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from streamer import __version__
from streamer.commands.acls import acls
from streamer.commands.audit import audit
from streamer.commands.benchmark import benchmark
from streamer.commands.dlq import dlq
from streamer.commands.evaluate import evaluate
from streamer.commands.explain import explain
from streamer.commands.exposure import exposure
from streamer.commands.flags import CONFIG, SettingsCommand
from streamer.commands.match import match
from streamer.commands.pilot import pilot
from streamer.commands.probe import probe
from streamer.commands.replay import replay
from streamer.commands.store import store
from streamer.commands.sweep import sweep
from streamer.commands.top import top
from streamer.machine import machine_error
from streamer.process import leave_process_1
from streamer.settings import SettingsError
from streamer.terminal import echo, printable, take_over_stderr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamer.settings import DemoSettings, EmbedSettings, RerankSettings, TopicsSettings


class _Cli(click.Group):
    """The group of all commands; click prints what is wrong with an argument, and so may quote a store's content."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the arguments that come before the command."""
        with _escaped():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _escaped():
            return super().invoke(ctx)


@contextmanager
def _escaped() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        raise


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="streamer")
def cli() -> None:
    """Rerank video search results frame by frame with CLIP, from Kafka to Kafka."""


cli.add_command(acls)
cli.add_command(audit)
cli.add_command(dlq)
cli.add_command(evaluate)
cli.add_command(explain)
cli.add_command(exposure)
cli.add_command(store)
cli.add_command(top)
cli.add_command(replay)
cli.add_command(sweep)
cli.add_command(match)
cli.add_command(pilot)
cli.add_command(benchmark)
cli.add_command(probe)


@cli.command(cls=SettingsCommand, uses="embed", short_help="Run the embedder: uploads into the store.")
def embed(settings: EmbedSettings) -> None:
    """Embed the frames of uploaded clips into the store (clips.uploaded -> clips.embedded)."""
    from streamer import service  # noqa: PLC0415

    service.run_embedder(settings)


@cli.command(cls=SettingsCommand, uses="rerank", short_help="Run the reranker: query results by frame.")
def rerank(settings: RerankSettings) -> None:
    """Rerank query results against the stored frames (query.results -> query.reranked)."""
    from streamer import service  # noqa: PLC0415

    service.run_reranker(settings)


@cli.group()
def topics() -> None:
    """Create, reconcile and compare the topics."""


_FILE_OPTION = click.option(
    "--file", type=click.Path(path_type=Path), help="Use this topics.toml instead of the packaged one."
)


_NO_GROUPS = ("group_suffix", "group_embed", "group_rerank")
"""Settings that no command of ``topics`` needs: sets of services share the topics."""


@topics.command(
    "apply",
    cls=SettingsCommand,
    uses="topics",
    without=_NO_GROUPS,
    short_help="Create missing topics, alter differing ones.",
)
@_FILE_OPTION
def topics_apply(settings: TopicsSettings, file: Path | None) -> None:
    """Create missing topics and reconcile differing ones; print what was done. Exit 1 if a change was refused."""
    from streamer.kafka.admin import topic_files  # noqa: PLC0415
    from streamer.kafka.admin import topics as admin  # noqa: PLC0415

    changes = admin.apply(settings, topic_files.load_specs(file))
    _print_lines(changes)
    sys.exit(1 if any(change.outcome is admin.Outcome.REFUSED for change in changes) else 0)


@topics.command(
    "check", cls=SettingsCommand, uses="topics", without=_NO_GROUPS, short_help="Compare the topics with the file."
)
@_FILE_OPTION
def topics_check(settings: TopicsSettings, file: Path | None) -> None:
    """Compare the cluster's topics with the file, without changing anything. Exit 1 if they differ.

    Warns where a service's input and output have different numbers of partitions.
    """
    from streamer.kafka.admin import topic_files  # noqa: PLC0415
    from streamer.kafka.admin import topics as admin  # noqa: PLC0415

    differences = admin.check(settings, topic_files.load_specs(file))
    _print_lines(differences or ["all topics match the file"])
    for warning in admin.copartitioning_warnings(settings):
        echo(f"warning: {warning}", err=True)
    sys.exit(1 if differences else 0)


@cli.command(short_help="Run a local Apache Kafka until Ctrl-C.")
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Number of brokers.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=9092, show_default=True, help="Port of the first broker."
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Folder for the data [default: a temporary one]."
)
def broker(brokers: str, port: int, data: Path | None) -> None:
    """Run a local Apache Kafka until Ctrl-C (needs the extra: cliprerank-streamer[broker])."""
    from streamer.local_kafka.broker import LocalKafka  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with LocalKafka(brokers=int(brokers), port=port, data_dir=data) as kafka:
        echo(f"Kafka runs at {kafka.bootstrap_servers}; stop it with Ctrl-C")
        stop.wait()


@cli.command(cls=SettingsCommand, uses="demo", short_help="Run the whole pipeline and write a report.")
@click.option(
    "--clips", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder with your own videos."
)
@click.option(
    "--queries",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with your own queries, one per line.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for the report.",
)
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C.")
def demo(settings: DemoSettings, **options: Any) -> None:
    """Run the whole pipeline: embed uploads, rerank queries, measure the results and write a report.

    Uses its own local Kafka unless --bootstrap-servers is given, and the small demo model for its rendered clips unless
    --model is given. That model knows nothing about real videos, so --clips needs --model.
    """
    if (options["clips"] is None) != (options["queries"] is None):
        raise click.UsageError("--clips and --queries must be given together")
    from streamer.demo import run  # noqa: PLC0415

    run.run(settings, config=click.get_current_context().meta.get(CONFIG), **options)


@cli.command(short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL, e.g. eval "$(streamer completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    echo(kind(cli, {}, "streamer", "_STREAMER_COMPLETE").source(), lines=True)


def _print_lines(lines: Sequence[object]) -> None:
    for line in lines:
        echo(str(line))


def main() -> None:
    """Run the command line; errors that users can fix are printed as one line."""
    leave_process_1()
    take_over_stderr()
    try:
        cli(prog_name="streamer")
    except SettingsError as error:
        echo(f"streamer: {error}", err=True)
        sys.exit(2)
    except _expected_errors() as error:
        # What such an error quotes over several lines is indented, so that no line of it looks like one of ours.
        echo(f"streamer: {error}".replace("\n", "\n  "), err=True, lines=True)
        sys.exit(1)
    except Exception as error:
        lack = machine_error(error)
        if lack is None:
            raise
        # Whoever supervises a service starts it again; a person can try again.
        detail = lack.detail if error is lack else str(error) or lack.detail
        echo(f"streamer: this machine is short of {lack.lack}: {detail}".replace("\n", "\n  "), err=True, lines=True)
        sys.exit(1)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Return the errors whose message needs no traceback, from the modules that the command has imported."""
    named = {
        "streamer.kafka.admin.topics": "TopicsError",
        "streamer.local_kafka.jars": "BrokerError",
        "streamer.kafka.readers.publish": "PublishError",
        "streamer.kafka.dlq.letters": "DeadLetterError",
        "streamer.kafka.readers.topic_reader": "ReadError",
        "streamer.kafka.readers.request": "RequestError",
        "streamer.evaluation.questions": "ReplayError",
        "streamer.match": "BankError",
        "streamer.explain.found": "ExplainError",
        "streamer.store": "StoreError",
        "streamer.store.protocol": "StoreUnavailableError",
        "streamer.evaluation.trec_rows": "TrecError",
        "streamer.evaluation.measures": "MeasureError",
        "streamer.evaluation.words.lists": "WordListError",
        "streamer.demo.run": "DemoError",
        "streamer.demo.services": "ServiceError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in named.items() if module in sys.modules)
