"""``streamer store``: inspect and maintain the store of frame embeddings."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click
import orjson
from rich.table import Table

from streamer.commands.flags import SettingsCommand
from streamer.commands.store_upkeep import store_compact, store_copy, store_drop_model, store_verify
from streamer.terminal import Terminal, echo, plain

if TYPE_CHECKING:
    from streamer.settings import StoreCommandSettings


@click.group()
def store() -> None:
    """Inspect and maintain the store of frame embeddings."""


for _command in (store_copy, store_verify, store_compact, store_drop_model):
    store.add_command(_command)


@store.command("stats", cls=SettingsCommand, uses="store")
def store_stats(settings: StoreCommandSettings) -> None:
    """Show the number of stored clips for each model."""
    from streamer.store import StoreOptions, masked, open_existing  # noqa: PLC0415

    with contextlib.closing(open_existing(settings.store, options=StoreOptions.of(settings))) as opened:
        figures = opened.stats()
    table = Table("model", "clips")
    for model_id, clips in figures.models.items():
        table.add_row(plain(model_id), f"{clips:,}")
    console = Terminal()
    console.print(masked(settings.store), highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"{figures.tombstones:,} tombstones, {figures.bytes:,} bytes")


@store.command("get", cls=SettingsCommand, uses="store", short_help="Show the record of a clip as JSON.")
@click.argument("clip_id")
@click.option("--model-id", help="Only the record of this model [default: the records of all models].")
def store_get(settings: StoreCommandSettings, clip_id: str, model_id: str | None) -> None:
    """Show the record of CLIP_ID as JSON: version, precision and the times of its vectors. Exit 1 if there is none."""
    from streamer.store import StoreOptions, masked, open_existing  # noqa: PLC0415

    options = StoreOptions.of(settings)
    with contextlib.closing(open_existing(settings.store, options=options)) as opened:
        models = [model_id] if model_id else list(opened.stats().models)
    found = False
    for each in models:
        with (
            contextlib.closing(open_existing(settings.store, model_id=each, options=options)) as opened,
            opened.read([clip_id]) as read,
        ):
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
            echo(orjson.dumps(described, option=orjson.OPT_UTC_Z).decode())
    if not found:
        raise click.ClickException(f"{clip_id} is not in {masked(settings.store)}")
