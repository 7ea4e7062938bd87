"""What the services show of faults while they strike: conditions of readiness, and the figures that alerts go by."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.signs import counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamer.scrape import Scrape
    from tests.chaos.clock import Clock
    from tests.chaos.faults import Strike
    from tests.chaos.services import Instance

_EVERY_S = 2.0
_LATER_S = 15.0
"""What a fault causes may show when it is over: a group takes its session to notice that a member has gone."""
_LAG_S = 10.0
_UNSTABLE_S = 3.0
NO_ANSWER = "no answer"
"""Nobody listens at the instance's port: a Prometheus sees the target down."""


class Sighting(NamedTuple):
    """One condition or figure that one instance showed, and when, in true seconds after the start."""

    at: float
    instance: str
    name: str


@dataclass
class Named:
    """What was seen of the strikes of one kind.

    Attributes:
        names: In how many of them each condition or figure showed meanwhile or soon after.
        after_s: For each of them of which anything showed, how many seconds after its beginning.
        unseen: How many of them nothing showed of.

    """

    names: Counter[str] = field(default_factory=Counter)
    after_s: list[float] = field(default_factory=list)
    unseen: int = 0

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"names": dict(self.names), "after_s": self.after_s, "unseen": self.unseen}


class Watch(threading.Thread):
    """Asks every instance every so often, until it is stopped."""

    def __init__(self, services: Iterable[Instance], clock: Clock, *, every_s: float = _EVERY_S) -> None:
        super().__init__(name="watch", daemon=True)
        self._services = list(services)
        self._clock = clock
        self._every_s = every_s
        self._stopped = threading.Event()
        self._figures: dict[str, dict[str, float]] = {}
        self.sightings: list[Sighting] = []

    def run(self) -> None:
        """Ask, again and again."""
        while not self._stopped.wait(self._every_s):
            for instance in self._services:
                metrics = instance.metrics()
                names = (
                    [NO_ANSWER]
                    if metrics is None
                    else [*instance.conditions(metrics), *self._shown(instance.name, metrics)]
                )
                self.sightings += [Sighting(self._clock.wall(), instance.name, name) for name in names]

    def _shown(self, instance: str, metrics: Scrape) -> list[str]:
        """Return the counters that have grown since the last look, and what waits for long."""
        found = counters(metrics)
        before = self._figures.get(instance, {})
        self._figures[instance] = found
        names = [name for name, value in found.items() if value > before.get(name, 0.0)]
        for name, series, most in (
            ("lag", "streamer_consumer_lag_seconds", _LAG_S),
            ("unstable", "streamer_unstable_seconds", _UNSTABLE_S),
        ):
            if any(value > most for value in metrics.series(series).values()):
                names.append(name)
        return names

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self.join()


def named(strikes: Iterable[Strike], sightings: Sequence[Sighting]) -> dict[str, Named]:
    """Tell, by kind of fault, what showed meanwhile or soon after, and how soon.

    Other faults may have struck at the same time: this tells what an operator saw, not what the cause was.
    """
    found: dict[str, Named] = {}
    for strike in strikes:
        kind = found.setdefault(str(strike.step.fault), Named())
        shown = [each for each in sightings if strike.at <= each.at <= strike.until + _LATER_S]
        kind.names.update({each.name for each in shown})
        if shown:
            kind.after_s.append(round(min(each.at for each in shown) - strike.at, 1))
        else:
            kind.unseen += 1
    return found
