"""``streamer benchmark``: runs the synthetic benchmark and prints the gain of reranking on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand
from streamer.terminal import Terminal, echo

if TYPE_CHECKING:
    from streamer.settings import BenchmarkSettings


@click.command(cls=SettingsCommand, uses="benchmark", short_help="Rerank a synthetic benchmark and measure the gain.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("avs-report"),
    show_default=True,
    help="New or empty folder for clips, store, topics, runs, judgments and results.",
)
@click.option(
    "--clips", type=click.IntRange(20, 20_000), default=400, show_default=True, help="Number of clips to render."
)
@click.option("--topics", type=click.IntRange(2, 2_000), default=100, show_default=True, help="Number of topics.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=11,
    show_default=True,
    help="Random seed; the same seed gives the same benchmark.",
)
def benchmark(settings: BenchmarkSettings, out: Path, clips: int, topics: int, seed: int) -> None:
    """Rerank a synthetic ad-hoc video search benchmark with weak to strong engines and NIST-style sampled judgments.

    Its output files are inputs for replay, evaluate and sweep. Needs the extra: cliprerank-streamer[evaluation].
    """
    if out.exists() and any(out.iterdir()):
        raise click.UsageError(f"{out} is not empty")
    from streamer.synthetic import benchmark  # noqa: PLC0415

    try:
        results = benchmark.run(settings, Terminal(stderr=True), benchmark.Size(clips, topics, seed), out)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    table = benchmark.markdown(results)
    (out / "report.md").write_text(table, encoding="utf-8")
    echo(table.rstrip("\n"), lines=True)
