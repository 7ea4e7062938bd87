"""``streamer top``: a live view of a running system."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

from streamer.commands.flags import SettingsCommand
from streamer.process import stopped_by_signals
from streamer.settings import invalid_setting
from streamer.terminal import Terminal

if TYPE_CHECKING:
    from streamer.settings import TopSettings
    from streamer.top.targets import Target


@click.command(cls=SettingsCommand, uses="top", short_help="Watch a running system in a terminal.")
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Refresh interval in seconds."
)
@click.option("--once", is_flag=True, help="Print one frame and exit; exit code 1 if no target is reachable.")
def top(settings: TopSettings, interval: float, once: bool) -> None:
    """Show throughput, lag, latency, dead letters and the last reranked queries of a running system.

    Reads the /metrics of its instances, and the topics outside any consumer group. Ctrl-C ends it. With --group-suffix,
    --group-embed or --group-rerank, only the queries and dead letters of those groups are shown; instances are shown by
    --targets.
    """
    from rich.live import Live  # noqa: PLC0415 - completion starts without all this

    from streamer.top.view import View  # noqa: PLC0415
    from streamer.top.watch import Watch  # noqa: PLC0415

    console = Terminal()
    with contextlib.closing(Watch(settings, _targets(settings), interval=interval)) as watch:
        frame = watch.frame()
        if once:
            time.sleep(interval)  # rates need two scrapes
            frame = watch.frame()
            console.print(View(frame))
            sys.exit(0 if any(instance.problem is None for instance in frame.instances) else 1)
        stop = stopped_by_signals()
        live = Live(View(frame, height=console.height), console=console, screen=console.is_terminal, auto_refresh=False)
        with live:
            while not stop.is_set():
                live.update(View(frame, height=console.height), refresh=True)
                if not stop.wait(interval):
                    frame = watch.frame()


def _targets(settings: TopSettings) -> list[Target]:
    from streamer.top.targets import Target  # noqa: PLC0415

    try:
        return [Target(url, ca=settings.targets_ca) for url in settings.read_targets()]
    except ValueError as error:
        raise invalid_setting("targets", error) from None
    except OSError as error:
        raise invalid_setting("targets_ca", error) from None
