"""Which fault hits whom and when. Pure: the same seed and scale give the same plan."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from streamer.faults import FaultPoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

T = TypeVar("T")

EMBED, RERANK, BROKER = "embed", "rerank", "broker"
LANES = (EMBED, RERANK, BROKER)
"""Faults of one lane come one after the other; those of different lanes meet as chance has it."""

BROKERS = 3
PROTOCOLS = ("classic", "consumer")
"""Kafka's two ways to run a consumer group; each run has a group of either."""


class Fault(StrEnum):
    """What is done to the system."""

    KILL = "kill -9 of a service"
    FREEZE = "SIGSTOP beyond the session timeout"
    UNWRITABLE = "store not writable"
    BROKER_KILL = "kill -9 of a broker"
    BROKER_RESTART = "restart of a broker"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Attributes:
        at: Seconds from the start of the faults; it comes later where its lane is still busy.
        fault: What is done.
        victim: A service's or broker's name; a lane's, where all of it is hit at the same time.
        seconds: How long the fault lasts.
        point: Where the victim of a kill dies once more, by itself, after it was started again; else empty.

    """

    at: float
    fault: Fault
    victim: str
    seconds: float = 0.0
    point: str = ""

    @property
    def lane(self) -> str:
        """The lane that the victim belongs to."""
        return self.victim.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything; `points` are kills after which the victim dies at a fault point as well."""

    seconds: float
    services: Mapping[str, int]
    uploads: int
    queries: int
    refused: int
    clips: int
    files: int
    kills: Mapping[str, int]
    points: Mapping[str, int]
    freezes: Mapping[str, int]
    broker_kills: int
    broker_restarts: int
    unwritable_s: float
    freeze_s: float = 9.0

    def names(self, role: str) -> list[str]:
        """Return the instances of a role."""
        return [f"{role}-{index}" for index in range(self.services[role])]


FULL = Scale(
    seconds=420,
    services={EMBED: 2, RERANK: 2},
    uploads=2_000,
    queries=5_000,
    refused=60,
    clips=700,
    files=50,
    kills={EMBED: 15, RERANK: 15},
    points={EMBED: 7, RERANK: 6},
    freezes={EMBED: 2, RERANK: 2},
    broker_kills=4,
    broker_restarts=2,
    unwritable_s=20,
)
SMALL = Scale(
    seconds=38,
    services={EMBED: 1, RERANK: 2},
    uploads=200,
    queries=500,
    refused=16,
    clips=80,
    files=12,
    kills={EMBED: 2, RERANK: 2},
    points={EMBED: 0, RERANK: 0},
    freezes={EMBED: 0, RERANK: 1},
    broker_kills=1,
    broker_restarts=0,
    unwritable_s=4,
)
"""Fault points are left to the tests that kill at each of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults in the order of their times, and the group protocol of each role."""

    steps: Sequence[Step]
    protocols: Mapping[str, str]

    def lanes(self) -> dict[str, list[Step]]:
        """Return the steps of each lane."""
        return {lane: [step for step in self.steps if step.lane == lane] for lane in LANES}


def make_plan(seed: int, scale: Scale) -> Plan:
    """Draw a plan. Raises ValueError where the faults do not fit into the time."""
    draw = random.Random(f"faults {seed}")  # noqa: S311 - reproducible, not secret
    steps = [
        *_spread(draw, _service_faults(draw, EMBED, scale), scale.seconds),
        *_spread(draw, _service_faults(draw, RERANK, scale), scale.seconds),
        *_spread(draw, _broker_faults(draw, scale), scale.seconds),
    ]
    protocols = draw.sample(PROTOCOLS, 2)
    return Plan(sorted(steps, key=lambda step: step.at), dict(zip((EMBED, RERANK), protocols, strict=True)))


def points_of(role: str) -> list[FaultPoint]:
    """Return the fault points that the processes of a role come through."""
    own = {EMBED: "embedder", RERANK: "reranker"}[role]
    return [point for point in FaultPoint if point.partition(".")[0] in {own, "transaction"}]


def _service_faults(draw: random.Random, role: str, scale: Scale) -> list[Step]:
    points = [_armed(draw, point) for point in _cycled(draw, points_of(role), scale.points[role])]
    kinds = [
        *((Fault.KILL, 0.0, point) for point in points),
        *((Fault.KILL, 0.0, "") for _ in range(scale.kills[role] - len(points))),
        *((Fault.FREEZE, scale.freeze_s, "") for _ in range(scale.freezes[role])),
        *((Fault.UNWRITABLE, scale.unwritable_s, "") for _ in range(role == EMBED)),
    ]
    draw.shuffle(kinds)
    # In turns: a process needs some seconds to start, and one that has not begun to work is no victim.
    victims = itertools.cycle(draw.sample(scale.names(role), scale.services[role]))
    return [
        Step(0, fault, role if fault is Fault.UNWRITABLE else next(victims), seconds, point)
        for fault, seconds, point in kinds
    ]


def _broker_faults(draw: random.Random, scale: Scale) -> list[Step]:
    kinds = [Fault.BROKER_KILL] * scale.broker_kills + [Fault.BROKER_RESTART] * scale.broker_restarts
    draw.shuffle(kinds)
    victims = _cycled(draw, [f"{BROKER}-{index}" for index in range(BROKERS)], len(kinds))
    return [
        Step(0, fault, victim, draw.uniform(1, 6) if fault is Fault.BROKER_KILL else 0.0)
        for fault, victim in zip(kinds, victims, strict=True)
    ]


def _armed(draw: random.Random, point: FaultPoint) -> str:
    """Choose the passage at which the process dies; a start passes its initialisation once."""
    passage = 1 if point is FaultPoint.INITIALISED else draw.randint(1, 6)
    return f"{point}:{passage}"


def _cycled(draw: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Take `count` items: each once before any is taken twice, in random order."""
    rounds = itertools.chain.from_iterable(draw.sample(items, len(items)) for _ in itertools.count())
    return list(itertools.islice(rounds, count))


def _room(step: Step) -> float:
    """Return the seconds that a step keeps its lane for itself, until the next one may come."""
    if step.fault is Fault.KILL:
        return 25.0 if step.point else 8.0
    return (
        step.seconds
        + {
            Fault.FREEZE: 10.0,
            Fault.UNWRITABLE: 8.0,
            Fault.BROKER_KILL: 15.0,
            Fault.BROKER_RESTART: 15.0,
        }[step.fault]
    )


def _spread(draw: random.Random, steps: Sequence[Step], seconds: float) -> Iterable[Step]:
    """Give the steps of a lane their times: random ones, with room for each."""
    rooms = [_room(step) for step in steps]
    slack = seconds - sum(rooms)
    if slack < 0:
        raise ValueError(f"{len(steps)} faults take {sum(rooms):.0f} s, more than {seconds:.0f} s")
    before = itertools.accumulate(rooms, initial=0.0)
    pauses = sorted(draw.uniform(0, slack) for _ in steps)
    return [
        Step(round(pause + start, 1), step.fault, step.victim, step.seconds, step.point)
        for step, pause, start in zip(steps, pauses, before, strict=False)
    ]
