"""``streamer store copy|verify|compact|drop-model``: operations on a whole store."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from streamer.commands.flags import SettingsCommand
from streamer.terminal import Terminal, echo, plain, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.settings import StoreCommandSettings
    from streamer.store.upkeep import Advance, Damage, ModelSurvey

_IN_USE_FOR = dt.timedelta(days=1)
"""A model with a newer clip than this counts as in use."""
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")


@click.command(
    "copy",
    cls=SettingsCommand,
    uses="store",
    without=["store"],
    short_help="Copy a store into another one and compare them.",
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted copy.")
@_JSON
def store_copy(settings: StoreCommandSettings, source: str, target: str, restart: bool, as_json: bool) -> None:
    """Copy every record of the store FROM into the store TO, then compare all of them.

    Both stores may be in use. Newer records in TO are kept. TO is created if it does not exist. Run an interrupted copy
    again to resume it. The configured user, password and certificates apply to both stores. Damaged records in FROM
    are skipped, and the exit code is then 1.
    """
    from streamer.store import StoreOptions  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415
    from streamer.store.transfer import copy  # noqa: PLC0415

    options = StoreOptions.of(settings)
    with (
        contextlib.closing(open_admin(source, options=options)) as opened,
        contextlib.closing(open_admin(target, create=True, options=options)) as to,
        _progress() as advance,
    ):
        report = copy(opened, to, restart=restart, advance=advance)
    if as_json:
        _echo_json(report)
    else:
        console = Terminal()
        if report.resumed:
            console.print(f"copy started at {report.begun_at:%Y-%m-%d %H:%M:%S} UTC, resumed {report.resumed} times")
        console.print(
            f"{report.written:,} records copied ({report.bytes:,} bytes), {report.present:,} already present, "
            f"{report.kept:,} kept because TO has the same version or a newer one"
        )
        console.print(f"{report.compared:,} compared, {report.mended:,} of them copied again")
        _print_damage(console, "in FROM (skipped)", report.damage)
    sys.exit(1 if report.damage.count else 0)


@click.command(
    "verify", cls=SettingsCommand, uses="store", short_help="Verify checksums, or compare with another store."
)
@click.option("--against", metavar="URL", help="Compare with this store, which must have each record or a newer one.")
@_JSON
def store_verify(settings: StoreCommandSettings, against: str | None, as_json: bool) -> None:
    """Verify the checksum of every record, or compare every record with another store.

    Exit 1 if a record is damaged or, with --against, is damaged, missing or older in the other store. Records that only
    the other store has are ignored. If the stores are being written, the most recent records may be reported as
    missing.
    """
    from streamer.store import StoreOptions, upkeep  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    console = Terminal()
    options = StoreOptions.of(settings)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(contextlib.closing(open_admin(settings.store, options=options)))
        other = stack.enter_context(contextlib.closing(open_admin(against, options=options))) if against else None
        with _progress() as advance:
            if other is not None:
                compared = upkeep.compare(opened, other, advance)
            else:
                verified = upkeep.verify(opened, advance)
    if other is not None:
        if as_json:
            _echo_json(compared)
        else:
            _print_damage(console, "in this store", compared.damage)
            console.print(
                f"{compared.same:,} identical, {compared.ahead:,} of the same version or newer there, "
                f"{compared.behind:,} older there, "
                f"{compared.missing:,} missing there, {compared.damaged:,} damaged there"
            )
            for each in compared.examples:
                console.print(plain(f"  {each}"), highlight=False)
        sys.exit(0 if compared.is_good else 1)
    if as_json:
        _echo_json(verified)
    else:
        table = Table("model", "clips", "tombstones", "bytes", "vectors", title="valid records")
        for model_id, figures in verified.models.items():
            kinds = ", ".join(f"{count:,} in {kind}" for kind, count in figures.kinds.most_common())
            table.add_row(plain(model_id), f"{figures.clips:,}", f"{figures.tombstones:,}", f"{figures.bytes:,}", kinds)
        console.print(table)
        _print_damage(console, "in this store", verified.damage)
    sys.exit(1 if verified.damage.count else 0)


@click.command("compact", cls=SettingsCommand, uses="store")
@click.option(
    "--to", type=click.Path(path_type=Path), help="Write a compact copy to this folder and leave the store unchanged."
)
def store_compact(settings: StoreCommandSettings, to: Path | None) -> None:
    """Free the disk space that an LMDB store no longer needs.

    Compacting in place needs exclusive access and is refused while a service has the store open. With --to, services
    may run; the copy is a snapshot, and `store copy` brings later changes into it.
    """
    from streamer.store import StoreOptions  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    with contextlib.closing(open_admin(settings.store, options=StoreOptions.of(settings))) as opened:
        before, after = opened.compact(to)
    echo(f"{before:,} bytes on disk before, {after:,} after")


@click.command("drop-model", cls=SettingsCommand, uses="store", short_help="Delete all vectors of a model.")
@click.argument("model_id")
@click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--even-if-in-use", is_flag=True, help="Delete the model even if it is the only one or has clips of the last day."
)
def store_drop_model(
    settings: StoreCommandSettings, model_id: str, dry_run: bool, yes: bool, even_if_in_use: bool
) -> None:
    """Delete all vectors of the model MODEL_ID; to get them back, its clips must be re-embedded.

    Stop its services first. A model that seems to be in use is refused. Exit 1 if a service wrote to it meanwhile.
    """
    from streamer.store import StoreOptions, upkeep  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    with contextlib.closing(open_admin(settings.store, options=StoreOptions.of(settings))) as opened:
        models = {name: prefix for prefix, name in opened.models().items()}
        if model_id not in models:
            stored = ", ".join(sorted(models)) or "none"
            raise click.ClickException(f"model {model_id!r} is not stored; stored: {stored}")
        with _progress() as advance:
            found = upkeep.survey(opened, models[model_id], advance)
        what = f"{found.clips:,} clips and {found.tombstones:,} tombstones of {model_id}"
        newest = "" if found.newest is None else f" (newest upload {found.newest:%Y-%m-%d %H:%M} UTC)"
        reason = _seems_in_use(found, alone=len(models) == 1)
        if dry_run:
            echo(f"would delete {what}{newest}" + (f"; {reason}" if reason else ""))
            return
        if reason and not even_if_in_use:
            raise click.ClickException(
                f"{model_id} seems to be in use: {reason}; --even-if-in-use deletes it all the same"
            )
        if not yes:
            click.confirm(printable(f"Delete {what}{newest}?"), abort=True)
        with _progress() as advance:
            removed, is_gone = upkeep.drop(opened, models[model_id], advance)
    echo(f"deleted {removed:,} records of {model_id}")
    if not is_gone:
        raise click.ClickException(
            "some records remain because a service is still writing them; stop it, and run this again"
        )


def _seems_in_use(found: ModelSurvey, *, alone: bool) -> str:
    """Return why a model seems to be in use; empty if it does not."""
    if found.clips and alone:
        return "it is the only stored model"
    if found.newest is not None and found.newest > dt.datetime.now(dt.UTC) - _IN_USE_FOR:
        return "it has clips uploaded within the last day"
    return ""


@contextlib.contextmanager
def _progress() -> Iterator[Advance]:
    """Show progress if stderr is a terminal."""
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=max(done, total))

        yield advance


def _print_damage(console: Terminal, where: str, damage: Damage) -> None:
    if not damage.count:
        return
    console.print(f"{damage.count:,} damaged records {where}; re-embed their clips. The first ones:")
    for each in damage.examples:
        console.print(plain(f"  {each}"), highlight=False)


def _echo_json(figures: object) -> None:
    echo(orjson.dumps(figures, option=orjson.OPT_UTC_Z).decode())
