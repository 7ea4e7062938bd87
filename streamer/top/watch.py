"""Collects what the view shows: the metrics of every target, and the last records of the topics."""

from __future__ import annotations

from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamer.codec import JSON
from streamer.events import InvalidEvent, QueryReranked, now
from streamer.kafka.dead_letters import GROUP_HEADER
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers.tail import Tail
from streamer.kafka.records import text_of
from streamer.metrics import CATALOGUE
from streamer.scrape import Scrape, Window, merged, quantile
from streamer.top.targets import TargetError
from streamer.topology import DEAD_LETTER_TOPICS, QUERY_RERANKED, QUERY_RESULTS, SERVICES, TOP

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping, Sequence

    from streamer.codec import Codec
    from streamer.kafka.records import Record
    from streamer.settings import Connection
    from streamer.top.targets import Target

_KEPT = 50
"""Recent records kept of each kind, more than any terminal shows."""
_SHOWN_MOVE_S = 30.0
"""How long a rebalance stays in view."""

_NAMES = {attribute: metric.name for attribute, metric in CATALOGUE.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one or more instances: rates per second, latencies in seconds (NaN where there were no events)."""

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
    """The last rebalance: how long ago in seconds, and the partitions gained and lost."""

    ago: float
    came: frozenset[int]
    went: frozenset[int]


@dataclass(frozen=True, slots=True)
class Instance:
    """The current state of one target; ``problem`` says why it is not known."""

    target: str
    problem: str | None = None
    command: str = ""
    group: str = ""
    """Its consumer group, by its full name."""
    not_ready: tuple[str, ...] = ()
    """The conditions that keep it from being ready."""
    lags: Mapping[int, float] = field(default_factory=dict)
    """Lag in records of each partition that it owns."""
    rebalances: int = 0
    move: Move | None = None
    load: Load | None = None
    """None until there are two scrapes to compare."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One reranked query."""

    event: QueryReranked
    at: dt.datetime
    group: str = ""
    """The consumer group that wrote it, empty where it does not say."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; ``topic`` is the input topic."""

    topic: str
    group: str
    """The consumer group that wrote it, empty where it does not say."""
    key: str
    reason: str
    error: str
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one screen shows."""

    at: dt.datetime
    interval: float
    instances: Sequence[Instance]
    totals: Mapping[tuple[str, str], Load]
    """By command and group, of those that have more than one instance."""
    answers: Sequence[Answer]
    letters: Sequence[Letter]
    problem: str | None
    """Why the topics cannot be read."""


class _Watched:
    """One target and its previous scrape."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.last: Scrape | None = None
        self._owned: frozenset[int] | None = None
        self._moved: tuple[float, frozenset[int], frozenset[int]] | None = None

    def look(self) -> tuple[Instance, Window | None]:
        """Scrape the target; the window between two scrapes is there from the second time on."""
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
            group=_label(scrape, "build_info", "group"),
            not_ready=tuple(
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
    """Makes a new frame at each call; used from one thread."""

    def __init__(
        self, settings: Connection, targets: Iterable[Target], *, interval: float, codec: Codec = JSON
    ) -> None:
        self._settings = settings
        self._codec = codec
        self.interval = interval
        self._watched = [_Watched(target) for target in targets]
        self._pool = ThreadPoolExecutor(max(1, len(self._watched)), thread_name_prefix="scrape")
        topics = [QUERY_RERANKED, *DEAD_LETTER_TOPICS]
        self._tail = Tail(settings, [settings.topic(name) for name in topics], TOP)
        services = SERVICES.values()
        self._sources = {settings.topic(service.dead_letters): service.input for service in services}
        self._chosen = {service.input: settings.chosen_group(service.group) for service in services}
        self._answers: deque[Answer] = deque(maxlen=_KEPT)
        self._letters: deque[Letter] = deque(maxlen=_KEPT)

    def frame(self) -> Frame:
        """Scrape all targets and read the topics; an unreachable target or broker takes a few seconds at most."""
        looks = [self._pool.submit(watched.look) for watched in self._watched]
        for record in self._tail.poll():
            self._take(record)
        instances, windows = [], defaultdict(list)
        for look in looks:
            instance, window = look.result()
            instances.append(instance)
            if window is not None:
                windows[instance.command, instance.group].append(window)
        return Frame(
            at=now(),
            interval=self.interval,
            instances=instances,
            totals={kind: _load(several) for kind, several in windows.items() if len(several) > 1},
            answers=list(reversed(self._answers)),
            letters=list(reversed(self._letters)),
            problem=self._tail.problem,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tail.close()

    def _take(self, record: Record) -> None:
        if record.topic == self._settings.topic(QUERY_RERANKED):
            group = text_of(record.headers, GROUP)
            if not self._is_chosen(QUERY_RESULTS, group):
                return
            try:
                self._answers.append(Answer(self._codec.decode(QueryReranked, record.value), record.timestamp, group))
            except InvalidEvent:
                return  # written by another client
            return
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        if "dlq.reason" in headers:  # otherwise it marks dead letters that were redriven
            source = self._sources[record.topic]
            key = (record.key or b"").decode(errors="replace")
            group, error = headers.get(GROUP_HEADER, ""), headers.get("dlq.error", "")
            if self._is_chosen(source, group):
                self._letters.append(Letter(source, group, key, headers["dlq.reason"], error, record.timestamp))

    def _is_chosen(self, source: str, group: str) -> bool:
        """Tell whether to show what a group (empty: unknown) wrote about the records of an input topic."""
        return not group or self._chosen[source] in (None, group)


def _label(scrape: Scrape, attribute: str, label: str) -> str:
    return next((dict(key).get(label, "") for key in scrape.series(_NAMES[attribute])), "")


def _load(windows: Sequence[Window]) -> Load:
    """Combine the load of several instances; the lag in seconds is the highest of any of them."""
    latency = merged(window.buckets(_NAMES["latency"]) for window in windows)
    lags = [value for window in windows for value in window.after.series(_NAMES["lag_seconds"]).values()]

    def rate(attribute: str) -> float:
        return sum(window.rate(_NAMES[attribute]) for window in windows)

    return Load(
        consumed=rate("consumed"),
        produced=rate("produced"),
        degraded=rate("degraded"),
        dead=rate("dead_lettered"),
        lag=sum(window.after.total(_NAMES["lag"]) for window in windows),
        lag_seconds=max(lags, default=0.0),
        p50=quantile(0.5, latency),
        p95=quantile(0.95, latency),
    )
