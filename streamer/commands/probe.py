"""``streamer probe``: measures what a model understands of negation, numbers, left and right."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand
from streamer.terminal import Terminal, printable

if TYPE_CHECKING:
    from streamer.settings import ProbeSettings

_OUTPUT = click.File("w", encoding="utf-8", lazy=True)


@click.command(cls=SettingsCommand, uses="probe", short_help="Measure what the model understands beyond nouns.")
@click.option(
    "--pairs", type=click.IntRange(8, 10_000), default=200, show_default=True, help="Number of probes of each kind."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=11,
    show_default=True,
    help="Random seed; the same seed gives the same probes.",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 2),
    default=0.5,
    show_default=True,
    help="Weight of the negated part in the negation rule that is tried.",
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write JSON to this file; - prints only the JSON.")
@click.option("--html", "html_file", type=_OUTPUT, help="Write an HTML page with a plot to this file.")
def probe(
    settings: ProbeSettings,
    pairs: int,
    seed: int,
    weight: float,
    json_file: IO[str] | None,
    html_file: IO[str] | None,
) -> None:
    """Ask the model to choose between two rendered clips that differ in one thing, and compare it with chance.

    Probes negation ("no", "without"), numbers, left and right, and as a control objects. Needs the extra:
    cliprerank-streamer[evaluation].
    """
    settings.named_model()
    import orjson  # noqa: PLC0415

    from streamer.encoders import load_model  # noqa: PLC0415
    from streamer.evaluation.page import render  # noqa: PLC0415
    from streamer.synthetic import probe_report, probes  # noqa: PLC0415

    encoder = load_model(settings)
    with Terminal(stderr=True).status(f"Asking {pairs} probes of each kind"):
        scored = probes.score(encoder, probes.pairs(seed, pairs), weight)
    found = probe_report.data(scored, model_id=encoder.model_id, seed=seed, weight=weight)
    if html_file is not None:
        html_file.write(printable(render(probe_report.page(found)), lines=True))
    if json_file is not None:
        json_file.write(printable(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n", lines=True))
    if "-" not in {file.name for file in (json_file, html_file) if file}:
        console = Terminal()
        for table in probe_report.terminal(found):
            console.print(table)
