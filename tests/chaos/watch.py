"""What /readyz of the services says while faults strike, to show that no fault passes in silence."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.clock import Clock
    from tests.chaos.faults import Strike
    from tests.chaos.services import Instance

_EVERY_S = 1.0
_LATER_S = 5.0
"""What a fault causes may show when it is over."""


class Sighting(NamedTuple):
    """One condition that one instance named, and when, in true seconds after the start."""

    at: float
    instance: str
    condition: str


class Watch(threading.Thread):
    """Asks every instance once a second, until it is stopped."""

    def __init__(self, services: Iterable[Instance], clock: Clock) -> None:
        super().__init__(name="watch", daemon=True)
        self._services = list(services)
        self._clock = clock
        self._stopped = threading.Event()
        self.sightings: list[Sighting] = []

    def run(self) -> None:
        """Ask, again and again."""
        while not self._stopped.wait(_EVERY_S):
            for instance in self._services:
                for condition in instance.readiness():
                    self.sightings.append(Sighting(self._clock.wall(), instance.name, condition))

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self.join()


def named(strikes: Iterable[Strike], sightings: Sequence[Sighting]) -> dict[str, Counter[str]]:
    """Count, by kind of fault, in how many of its strikes each condition was named meanwhile or soon after.

    Other faults may have struck at the same time: this tells what an operator saw, not what the cause was.
    """
    found: dict[str, Counter[str]] = {}
    for strike in strikes:
        conditions = {each.condition for each in sightings if strike.at <= each.at <= strike.until + _LATER_S}
        found.setdefault(str(strike.step.fault), Counter()).update(conditions)
    return found
