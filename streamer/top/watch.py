"""Gathers what the view shows: every target's metrics, side by side, and the ends of the topics."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamer.events import InvalidEvent, QueryReranked, decode, now
from streamer.kafka.readers.tail import Tail
from streamer.metrics import CATALOGUE
from streamer.scrape import Scrape, Window, merged, quantile
from streamer.top.targets import TargetError
from streamer.topology import DLQ_SUFFIX

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping, Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection
    from streamer.top.targets import Target

ANSWERS = "query.reranked"
SOURCES = ("clips.uploaded", "query.results")
_KEPT = 50
"""Recent records that are kept of each kind, more than any terminal shows."""
_SHOWN_MOVE_S = 30.0
"""How long a move of partitions stays in view."""

_NAMES = {attribute: metric.name for attribute, metric in CATALOGUE.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """What one or more instances of a command do: rates a second, latencies in seconds (NaN: nothing came)."""

    consumed: float
    produced: float
    degraded: float
    dead: float
    lag: float
    lag_seconds: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Move:
    """The last rebalance that was seen: how long ago in seconds, and what came and went."""

    ago: float
    came: frozenset[int]
    went: frozenset[int]


@dataclass(frozen=True, slots=True)
class Instance:
    """One target as it is now; ``problem`` says why nothing is known of it."""

    target: str
    problem: str | None = None
    command: str = ""
    waits_for: tuple[str, ...] = ()
    lags: Mapping[int, float] = field(default_factory=dict)
    """Records behind, of each partition that it owns."""
    rebalances: int = 0
    move: Move | None = None
    load: Load | None = None
    """None until two scrapes are there to compare."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One reranked query."""

    event: QueryReranked
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; ``topic`` is the input topic."""

    topic: str
    key: str
    reason: str
    error: str
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Frame:
    """All that one picture shows."""

    at: dt.datetime
    interval: float
    instances: Sequence[Instance]
    totals: Mapping[str, Load]
    """By command, of those that have more than one instance."""
    answers: Sequence[Answer]
    letters: Sequence[Letter]
    problem: str | None
    """Why the topics cannot be read."""


class _Watched:
    """What is remembered of one target from one look to the next."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.last: Scrape | None = None
        self._owned: frozenset[int] | None = None
        self._moved: tuple[float, frozenset[int], frozenset[int]] | None = None

    def look(self) -> tuple[Instance, Window | None]:
        """Scrape; what two scrapes say is there from the second time on."""
        try:
            scrape = self.target.scrape()
        except TargetError as error:
            return Instance(self.target.name, problem=str(error)), None
        window = Window(self.last, scrape) if self.last is not None else None
        self.last = scrape
        lags = {int(dict(key)["partition"]): value for key, value in scrape.series(_NAMES["lag"]).items()}
        rebalances = scrape.total(_NAMES["rebalances"])
        self._note_move(scrape.at, frozenset(lags), window)
        instance = Instance(
            self.target.name,
            command=_label(scrape, "build_info", "command"),
            waits_for=tuple(
                sorted(dict(key)["condition"] for key, value in scrape.series(_NAMES["unready"]).items() if value)
            ),
            lags=lags,
            rebalances=int(rebalances),
            move=self._move(scrape.at),
            load=_load([window]) if window is not None else None,
        )
        return instance, window

    def _note_move(self, at: float, owned: frozenset[int], window: Window | None) -> None:
        known = self._owned
        self._owned = owned
        if known is not None and (known != owned or (window and window.increase(_NAMES["rebalances"]))):
            self._moved = (at, owned - known, known - owned)

    def _move(self, at: float) -> Move | None:
        if self._moved is None or at - self._moved[0] > _SHOWN_MOVE_S:
            return None
        return Move(at - self._moved[0], *self._moved[1:])


class Watch:
    """Looks again each time it is asked; used from one thread."""

    def __init__(self, settings: Connection, targets: Iterable[Target], *, interval: float) -> None:
        self._settings = settings
        self.interval = interval
        self._watched = [_Watched(target) for target in targets]
        self._pool = ThreadPoolExecutor(max(1, len(self._watched)), thread_name_prefix="scrape")
        topics = [ANSWERS, *(source + DLQ_SUFFIX for source in SOURCES)]
        self._tail = Tail(settings, [settings.topic(name) for name in topics], role="top")
        self._answers: deque[Answer] = deque(maxlen=_KEPT)
        self._letters: deque[Letter] = deque(maxlen=_KEPT)

    def frame(self) -> Frame:
        """Look at everything; a target or broker that does not answer costs a few seconds at most."""
        looks = [self._pool.submit(watched.look) for watched in self._watched]
        for record in self._tail.look():
            self._take(record)
        instances, windows = [], defaultdict(list)
        for look in looks:
            instance, window = look.result()
            instances.append(instance)
            if window is not None:
                windows[instance.command].append(window)
        return Frame(
            at=now(),
            interval=self.interval,
            instances=instances,
            totals={command: _load(several) for command, several in windows.items() if len(several) > 1},
            answers=list(reversed(self._answers)),
            letters=list(reversed(self._letters)),
            problem=self._tail.problem,
        )

    def close(self) -> None:
        """Let the connections go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tail.close()

    def _take(self, record: Record) -> None:
        if record.topic == self._settings.topic(ANSWERS):
            try:
                self._answers.append(Answer(decode(QueryReranked, record.value), record.timestamp))
            except InvalidEvent:
                return  # written by somebody else
            return
        told = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        if "dlq.reason" in told:  # else it is a marker of what was put back
            source = record.topic.removeprefix(self._settings.topic_prefix).removesuffix(DLQ_SUFFIX)
            key = (record.key or b"").decode(errors="replace")
            letter = Letter(source, key, told["dlq.reason"], told.get("dlq.error", ""), record.timestamp)
            self._letters.append(letter)


def _label(scrape: Scrape, attribute: str, label: str) -> str:
    return next((dict(key).get(label, "") for key in scrape.series(_NAMES[attribute])), "")


def _load(windows: Sequence[Window]) -> Load:
    """Put together what several instances do; the lag in seconds is that of the one that is furthest behind."""
    latency = merged(window.buckets(_NAMES["latency"]) for window in windows)
    behind = [value for window in windows for value in window.after.series(_NAMES["lag_seconds"]).values()]

    def rate(attribute: str) -> float:
        return sum(window.rate(_NAMES[attribute]) for window in windows)

    return Load(
        consumed=rate("consumed"),
        produced=rate("produced"),
        degraded=rate("degraded"),
        dead=rate("dead_lettered"),
        lag=sum(window.after.total(_NAMES["lag"]) for window in windows),
        lag_seconds=max(behind, default=0.0),
        p50=quantile(0.5, latency),
        p95=quantile(0.95, latency),
    )
