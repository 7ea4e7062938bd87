"""The consume loop as a process of its own, with nothing around it: each record comes out again with its own value.

It is what the services run, without a model to load, so a test can kill it at each step of a transaction and start it
again in a second. Settings and the fault point come from the environment, as for the services.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from streamer import faults
from streamer.health import Health
from streamer.kafka import FatalError, InFlightRecord, Loop, Output, Stop
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP, INPUT, OUTPUT = RERANK.group, RERANK.input, RERANK.output


class Echo:
    """Answers each record at once."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def submit(self, records: Sequence[InFlightRecord]) -> None:
        for in_flight in records:
            in_flight.complete([Output(self._topic, in_flight.record.key, in_flight.record.value, ())])


def main() -> int:
    settings = load({})
    faults.arm()
    metrics = Metrics()
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    loop = Loop(settings, RERANK, max_records=500, metrics=metrics, health=Health(metrics))
    try:
        return 0 if loop.run(Echo(settings.topic(OUTPUT)), stop) else 3
    except FatalError as error:
        sys.stderr.write(f"fatal: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
