"""``streamer exposure``: the exposure of groups of clips, continuously, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamer.commands.audit import top_option
from streamer.commands.flags import SettingsCommand
from streamer.process import stopped_by_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.settings import ExposureSettings


@click.command(
    cls=SettingsCommand, uses="exposure", short_help="Expose which groups of clips users see, as Prometheus metrics."
)
@click.option(
    "--attribute",
    "names",
    multiple=True,
    required=True,
    metavar="NAME",
    help="An attribute of clips.uploaded whose groups are counted; may be repeated.",
)
@click.option(
    "--groups",
    "most",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    help="Most values of one attribute that are counted by name; the clips of all further values are one group.",
)
@top_option
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=10.0,
    show_default=True,
    help="Seconds between two looks at the topics.",
)
def exposure(settings: ExposureSettings, names: Sequence[str], most: int, top: int, interval: float) -> None:
    """Count the exposure of groups of clips in each new answer, before and after reranking, until it is stopped.

    Reads clips.uploaded from its beginning and query.reranked from now on, outside any consumer group, and serves
    /metrics, /livez and /readyz. One instance is enough; after a restart it counts what comes from then on.
    docs/fairness.md explains the figures, and how to draw them.
    """
    from streamer.evaluation.audit.following import follow  # noqa: PLC0415 - completion starts without all this

    attributes = list(dict.fromkeys(names))
    follow(settings, attributes, top=top, most=most, interval=interval, stop=stopped_by_signals())
