"""``streamer store copy|verify|compact|drop-model``: what is done to a whole store."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson
from rich.console import Console
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.settings import StoreCommandSettings
    from streamer.store.upkeep import Advance, Damage, ModelSurvey

_IN_USE_FOR = dt.timedelta(days=1)
"""A model whose newest clip is younger seems to be written to."""
_JSON = click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")


@click.command("copy", cls=SettingsCommand, uses="store", without=["store"])
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--restart", is_flag=True, help="Begin anew where an earlier copy was interrupted.")
@_JSON
def store_copy(settings: StoreCommandSettings, source: str, target: str, restart: bool, as_json: bool) -> None:
    """Bring every record of the store FROM into the store TO, and compare them all afterwards.

    Both may be in use. What TO has that is newer stays; TO is made where it is absent. An interrupted copy goes on
    where it was when it is run again. User, password and certificates that are set are those of both. Exit 1 where a
    record of FROM is damaged: such ones are left out.
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
        console = Console()
        if report.resumed:
            console.print(
                f"a copy that was begun at {report.begun_at:%Y-%m-%d %H:%M:%S} UTC, resumed {report.resumed} x"
            )
        console.print(
            f"{report.written:,} records copied ({report.bytes:,} bytes), {report.present:,} were there already, "
            f"{report.kept:,} stay in TO, being no older"
        )
        console.print(f"{report.compared:,} compared, of which {report.mended:,} had to be copied then")
        _print_damage(console, "in FROM, left out", report.damage)
    sys.exit(1 if report.damage.count else 0)


@click.command("verify", cls=SettingsCommand, uses="store")
@click.option("--against", metavar="URL", help="Another store: look there for each record, the same or newer.")
@_JSON
def store_verify(settings: StoreCommandSettings, against: str | None, as_json: bool) -> None:
    """Take the checksum of every record, or compare every record with another store's.

    Exit 1 where one is damaged or, with --against, damaged, missing or older there. What only the other store has
    is not looked at. In stores that are written meanwhile, the last few may be found missing.
    """
    from streamer.store import StoreOptions, upkeep  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    console = Console()
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
            _print_damage(console, "here", compared.damage)
            console.print(
                f"{compared.same:,} the same, {compared.ahead:,} no older there, {compared.behind:,} older there, "
                f"{compared.missing:,} missing there, {compared.damaged:,} damaged there"
            )
            for each in compared.examples:
                console.print(f"  {each}", markup=False, highlight=False)
        sys.exit(0 if compared.is_good else 1)
    if as_json:
        _echo_json(verified)
    else:
        table = Table("model", "clips", "tombstones", "bytes", "vectors", title="records that are whole")
        for model_id, figures in verified.models.items():
            kinds = ", ".join(f"{count:,} in {kind}" for kind, count in figures.kinds.most_common())
            table.add_row(model_id, f"{figures.clips:,}", f"{figures.tombstones:,}", f"{figures.bytes:,}", kinds)
        console.print(table)
        _print_damage(console, "here", verified.damage)
    sys.exit(1 if verified.damage.count else 0)


@click.command("compact", cls=SettingsCommand, uses="store")
@click.option(
    "--to", type=click.Path(path_type=Path), help="Folder for a compact copy; the store itself stays as it is."
)
def store_compact(settings: StoreCommandSettings, to: Path | None) -> None:
    """Give the disk back what an LMDB store no longer needs.

    In place nobody may have the store open: it is refused while a service runs. With --to, services may run, and
    the copy is the store as it was at one moment; `store copy` brings what came later.
    """
    from streamer.store import StoreOptions  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    with contextlib.closing(open_admin(settings.store, options=StoreOptions.of(settings))) as opened:
        before, after = opened.compact(to)
    click.echo(f"{before:,} bytes on disk before, {after:,} after")


@click.command("drop-model", cls=SettingsCommand, uses="store")
@click.argument("model_id")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--even-if-in-use", is_flag=True, help="Though it is the only model, or has clips of the last day.")
def store_drop_model(
    settings: StoreCommandSettings, model_id: str, dry_run: bool, yes: bool, even_if_in_use: bool
) -> None:
    """Remove all that is stored of the model MODEL_ID; its clips have to be embedded again to come back.

    Stop its services first. Refused for a model that seems to be in use; exit 1 where a service has written to it
    meanwhile.
    """
    from streamer.store import StoreOptions, upkeep  # noqa: PLC0415
    from streamer.store.opening import open_admin  # noqa: PLC0415

    with contextlib.closing(open_admin(settings.store, options=StoreOptions.of(settings))) as opened:
        models = {name: prefix for prefix, name in opened.models().items()}
        if model_id not in models:
            raise click.ClickException(f"no model {model_id!r} is stored, but: {', '.join(sorted(models)) or 'none'}")
        with _progress() as advance:
            found = upkeep.survey(opened, models[model_id], advance)
        what = f"{found.clips:,} clips and {found.tombstones:,} tombstones of {model_id}"
        newest = "" if found.newest is None else f" (newest upload {found.newest:%Y-%m-%d %H:%M} UTC)"
        reason = _seems_in_use(found, alone=len(models) == 1)
        if dry_run:
            click.echo(f"would remove {what}{newest}" + (f"; {reason}" if reason else ""))
            return
        if reason and not even_if_in_use:
            raise click.ClickException(f"{model_id} seems to be in use: {reason} (--even-if-in-use)")
        if not yes:
            click.confirm(f"Remove {what}{newest}?", abort=True)
        with _progress() as advance:
            removed, is_gone = upkeep.drop(opened, models[model_id], advance)
    click.echo(f"removed {removed:,} records of {model_id}")
    if not is_gone:
        raise click.ClickException("records of it have come meanwhile and stay: a service still writes them")


def _seems_in_use(found: ModelSurvey, *, alone: bool) -> str:
    """Say why a model seems to be in use; empty where it does not."""
    if found.clips and alone:
        return "it is the only model that is stored"
    if found.newest is not None and found.newest > dt.datetime.now(dt.UTC) - _IN_USE_FOR:
        return "it has clips that were uploaded within the last day"
    return ""


@contextlib.contextmanager
def _progress() -> Iterator[Advance]:
    """Show how far a pass is, on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=max(done, total))

        yield advance


def _print_damage(console: Console, where: str, damage: Damage) -> None:
    if not damage.count:
        return
    console.print(f"{damage.count:,} damaged records {where}; embed their clips again. The first ones:")
    for each in damage.examples:
        console.print(f"  {each}", markup=False, highlight=False)


def _echo_json(figures: object) -> None:
    click.echo(orjson.dumps(figures, option=orjson.OPT_UTC_Z).decode())
