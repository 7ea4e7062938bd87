"""Which fault hits whom and when. Pure: the same seed and scale give the same plan."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from streamer.faults import FaultPoint
from tests.chaos.kinds import BROKER, EMBED, LANES, LMDB, RERANK, STORE, TOPIC, TRAITS, Fault

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

T = TypeVar("T")

BROKERS = 3
PROTOCOLS = ("classic", "consumer")
"""Kafka's two ways to run a consumer group; each run has a group of either."""
SHARDS = 3
"""Of a store that is a cluster: each a primary and its replica."""
ALL = "all"
"""In the name of a victim: every broker, or every node of the store, at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Attributes:
        at: Seconds from the start of the faults; it comes later where its lane is still busy.
        fault: What is done.
        victim: A service's or broker's name; a lane's, where all of it is hit at the same time; ``topic-`` and a
            role, where that role's topics or group are; ``store-`` and a number, for one of the store's primaries.
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

    @property
    def role(self) -> str:
        """The role whose service, topics or group are hit; of a broker's step, that whose log it damages."""
        return self.victim.partition("-")[2] if self.lane == TOPIC else self.lane

    @property
    def room(self) -> float:
        """The seconds that a step keeps its lane for itself, until the next one may come."""
        return self.seconds + TRAITS[self.fault].room + (_POINT_S if self.point else 0.0)

    @property
    def lanes(self) -> list[str]:
        """The lanes in which nothing else may happen meanwhile, in the order in which they are taken."""
        traits = TRAITS[self.fault]
        taken = {self.lane, *traits.excludes} | ({self.role} if traits.stops_group else set())
        return [lane for lane in LANES if lane in taken]


_POINT_S = 17.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything.

    Attributes:
        seconds: From the first fault to the last.
        faults: How often each kind strikes, by its lane; in the lane of topics, by the role whose topics are hit.
        points: Kills after which the victim dies at a fault point as well, by role.
        durations: How long a kind lasts where it is not its usual time.
        store: Where the services keep the vectors.

    """

    seconds: float
    services: Mapping[str, int]
    uploads: int
    queries: int
    refused: int
    clips: int
    files: int
    faults: Mapping[str, Mapping[Fault, int]]
    points: Mapping[str, int]
    durations: Mapping[Fault, float] = field(default_factory=dict)
    store: str = LMDB

    def names(self, role: str) -> list[str]:
        """Return the instances of a role."""
        return [f"{role}-{index}" for index in range(self.services[role])]

    @property
    def count(self) -> int:
        """How many faults there are."""
        return sum(sum(kinds.values()) for kinds in self.faults.values())

    def reduced(self, seed: int, count: int, kinds: Collection[Fault]) -> Scale:
        """Return a scale of ``count`` faults of these kinds, drawn from this one's, with inputs for as long.

        Each kind comes up before any comes up twice.
        """
        draw = random.Random(f"selection {seed}")  # noqa: S311 - reproducible, not secret
        pool = {
            fault: [lane for lane, faults in self.faults.items() for _ in range(faults.get(fault, 0))]
            for fault in draw.sample(sorted(kinds), len(kinds))
        }
        chosen: list[tuple[str, Fault]] = []
        while len(chosen) < count and any(pool.values()):
            for fault, lanes in pool.items():
                if lanes and len(chosen) < count:
                    chosen.append((lanes.pop(draw.randrange(len(lanes))), fault))
        faults = {lane: {fault: chosen.count((lane, fault)) for fault in Fault} for lane in self.faults}
        points = {
            lane: min(most, faults[lane][Fault.KILL] * most // max(1, self.faults[lane][Fault.KILL]))
            for lane, most in self.points.items()
        }
        scale = replace(self, faults=faults, points=points)
        seconds = max(30.0, 1.1 * max(sum(step.room for step in steps) for steps in _drafts(draw, scale).values()))
        share = seconds / self.seconds
        return replace(
            scale,
            seconds=seconds,
            uploads=round(share * self.uploads),
            queries=round(share * self.queries),
            refused=max(16, round(share * self.refused)),
            clips=max(80, round(share * self.clips)),
            files=min(self.files, max(12, round(share * self.files))),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults in the order of their times, and the group protocol of each role."""

    steps: Sequence[Step]
    protocols: Mapping[str, str]

    def holds(self, fault: Fault) -> bool:
        """Whether it has a step of this kind."""
        return any(step.fault is fault for step in self.steps)

    def lanes(self) -> dict[str, list[Step]]:
        """Return the steps of each lane."""
        return {lane: [step for step in self.steps if step.lane == lane] for lane in LANES}


def make_plan(seed: int, scale: Scale) -> Plan:
    """Draw a plan. Raises ValueError where the faults do not fit into the time."""
    draw = random.Random(f"faults {seed}")  # noqa: S311 - reproducible, not secret
    steps = [step for drafts in _drafts(draw, scale).values() for step in _spread(draw, drafts, scale.seconds)]
    protocols = draw.sample(PROTOCOLS, 2)
    return Plan(sorted(steps, key=lambda step: step.at), dict(zip((EMBED, RERANK), protocols, strict=True)))


def points_of(role: str) -> list[FaultPoint]:
    """Return the fault points that the processes of a role come through."""
    own = {EMBED: "embedder", RERANK: "reranker"}[role]
    return [point for point in FaultPoint if point.partition(".")[0] in {own, "transaction"}]


def _drafts(draw: random.Random, scale: Scale) -> dict[str, list[Step]]:
    """Draw the steps of each lane in their order, without their times."""
    return {
        EMBED: _service_faults(draw, EMBED, scale),
        RERANK: _service_faults(draw, RERANK, scale),
        BROKER: _broker_faults(draw, scale),
        TOPIC: _topic_faults(draw, scale),
        STORE: _store_faults(draw, scale),
    }


def _service_faults(draw: random.Random, role: str, scale: Scale) -> list[Step]:
    points = [_armed(draw, point) for point in _cycled(draw, points_of(role), scale.points[role])]
    kinds = [(fault, "") for fault in _listed(scale.faults[role])]
    kinds = [(fault, points.pop() if fault is Fault.KILL and points else "") for fault, _ in kinds]
    draw.shuffle(kinds)
    # In turns: a process needs some seconds to start, and one that has not begun to work is no victim.
    victims = itertools.cycle(draw.sample(scale.names(role), scale.services[role]))
    return [_step(scale, fault, role if TRAITS[fault].hits_all else next(victims), point) for fault, point in kinds]


def _broker_faults(draw: random.Random, scale: Scale) -> list[Step]:
    kinds = _listed(scale.faults.get(BROKER, {}))
    draw.shuffle(kinds)
    victims = iter(_cycled(draw, [f"{BROKER}-{index}" for index in range(BROKERS)], len(kinds)))
    return [
        replace(
            _step(scale, fault, f"{BROKER}-{ALL}" if TRAITS[fault].hits_all else next(victims)),
            seconds=draw.uniform(1, 6) if fault is Fault.BROKER_KILL else TRAITS[fault].lasts,
        )
        for fault in kinds
    ]


def _topic_faults(draw: random.Random, scale: Scale) -> list[Step]:
    steps = [
        _step(scale, fault, lane)
        for lane, faults in scale.faults.items()
        if lane.startswith(f"{TOPIC}-")
        for fault in _listed(faults)
    ]
    draw.shuffle(steps)
    return steps


def _store_faults(draw: random.Random, scale: Scale) -> list[Step]:
    kinds = _listed(scale.faults.get(STORE, {}))
    draw.shuffle(kinds)
    victims = _cycled(draw, [f"{STORE}-{index}" for index in range(SHARDS)], len(kinds))
    return [
        _step(scale, fault, f"{STORE}-{ALL}" if TRAITS[fault].hits_all else victim)
        for fault, victim in zip(kinds, victims, strict=True)
    ]


def _listed(faults: Mapping[Fault, int]) -> list[Fault]:
    return [fault for fault, count in faults.items() for _ in range(count)]


def _step(scale: Scale, fault: Fault, victim: str, point: str = "") -> Step:
    return Step(0, fault, victim, scale.durations.get(fault, TRAITS[fault].lasts), point)


def _armed(draw: random.Random, point: FaultPoint) -> str:
    """Choose the passage at which the process dies; a start passes its initialisation once."""
    passage = 1 if point is FaultPoint.INITIALISED else draw.randint(1, 6)
    return f"{point}:{passage}"


def _cycled(draw: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Take `count` items: each once before any is taken twice, in random order."""
    rounds = itertools.chain.from_iterable(draw.sample(items, len(items)) for _ in itertools.count())
    return list(itertools.islice(rounds, count))


def _spread(draw: random.Random, steps: Sequence[Step], seconds: float) -> Iterable[Step]:
    """Give the steps of a lane their times: random ones, with room for each."""
    rooms = [step.room for step in steps]
    slack = seconds - sum(rooms)
    if slack < 0:
        raise ValueError(f"{len(steps)} faults take {sum(rooms):.0f} s, more than {seconds:.0f} s")
    before = itertools.accumulate(rooms, initial=0.0)
    pauses = sorted(draw.uniform(0, slack) for _ in steps)
    return [
        replace(step, at=round(pause + start, 1)) for step, pause, start in zip(steps, pauses, before, strict=False)
    ]
