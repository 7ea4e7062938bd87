"""What is done to the nodes of a store that is a cluster: they hang, die, move, evict, are full, flushed, forgetful."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.chaos.inputs import extra_upload
from tests.chaos.kinds import RERANK
from tests.chaos.plan import SHARDS
from tests.chaos.scene import AT_WORK_S, INPUTS, Outcome
from tests.chaos.service_faults import state
from tests.chaos.services import Cause, await_at_work
from tests.chaos.signs import OF_THE_STORE, Signs
from tests.chaos.stores import ClusterStore
from tests.support import cluster_faults
from tests.support.redis_servers import is_primary
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene
    from tests.support.redis_servers import Cluster, Server

_SHOWN_S = 40.0
_WHOLE_S = 120.0
"""A busy machine gets three times as long for either."""
_BACK_S = 3.0
"""A reader asks a node again within two seconds of its return."""
_PAUSE_S = 0.3
_SLOTS = 8
_UPLOADS = 12
"""Published while a node is full: so many that some belong to it."""
_POLICIES = ("allkeys-lru", "allkeys-random")
_TOO_MUCH = 10_000
"""Bytes of a node's records that are beyond its limit while it may evict."""
_CLIP = re.compile(rb"(?:clip|extra)-[0-9a-f]+")


def await_whole(scene: Scene) -> None:
    """Wait until all nodes are up, all slots served and all replicas in step. Raises TimeoutError."""
    cluster = _cluster(scene)
    wait_until(cluster.is_whole, "the store's cluster to be whole", seconds=_WHOLE_S, pause=_PAUSE_S)


def hang(scene: Scene, step: Step) -> Outcome:
    """Stop a primary, until that shows at a service; its connections stay open."""
    victim = _primary(scene, step)
    signs = _signs(scene)
    with _incomplete(scene, degraded=True), cluster_faults.hanging([victim]):
        _hold(step, signs)
        stopped = state(victim.pid) == "T"
    return Outcome(stopped and bool(signs), str(signs))


def kill(scene: Scene, step: Step) -> Outcome:
    """Kill a primary, and start it again when its replica has taken over."""
    victim = _primary(scene, step)
    signs = _signs(scene)
    with _incomplete(scene, degraded=True), cluster_faults.dead(_cluster(scene), victim) as other:
        time.sleep(step.seconds)
        signs.look()
        taken_over = is_primary(other)
    return Outcome(taken_over, str(signs))


def promote(scene: Scene, step: Step) -> Outcome:
    """Let a replica take its primary's place, as an operator does before an upgrade."""
    victim = _primary(scene, step)
    signs = _signs(scene)
    with _incomplete(scene):
        promoted = cluster_faults.promote(_cluster(scene), victim)
        signs.look()
    return Outcome(promoted in _cluster(scene).primaries(), str(signs))


def move_slots(scene: Scene, step: Step) -> Outcome:
    """Hand over slots that are read and written, a key at a time."""
    source = _primary(scene, step)
    target = scene.draw(step).choice([node for node in _cluster(scene).primaries() if node is not source])
    signs = _signs(scene)
    with _incomplete(scene):
        moved = cluster_faults.move_slots(source, target, _SLOTS)
        signs.look()
    return Outcome(any(moved.values()), f"{len(moved)} slots with {sum(moved.values())} keys; {signs}")


def evict(scene: Scene, step: Step) -> Outcome:
    """Let a node evict keys, and reach its limit once every service says that it may: they write nothing then."""
    victim = _with_clips(_primary(scene, step))
    signs = _signs(scene)
    named = _Named(scene, "eviction")
    policy = scene.draw(step).choice(_POLICIES)
    with (
        scene.refused_by_the_store("maxmemory-policy"),
        cluster_faults.configured(victim, maxmemory_policy=policy),
    ):
        with suppress(TimeoutError):
            wait_until(named.everywhere, seconds=_SHOWN_S, what="all services to say so", pause=_PAUSE_S)
        silent = named.silent()
        before, evicted = cluster_faults.keys_of(victim), cluster_faults.evicted(victim)
        with cluster_faults.configured(victim, maxmemory=cluster_faults.memory_counted(victim) - _TOO_MUCH):
            with suppress(TimeoutError):
                wait_until(lambda: cluster_faults.evicted(victim) > evicted, seconds=_SHOWN_S, what="evictions")
            time.sleep(step.seconds)
        lost = before - cluster_faults.keys_of(victim)
        scene.ledger.forget(clips_of(lost))
        signs.look()
    return Outcome(
        bool(lost) and not silent,
        f"{policy}, {len(lost)} keys evicted; {signs}",
        harm=[f"{name} does not say that a server evicts" for name in silent],
    )


def fill(scene: Scene, step: Step) -> Outcome:
    """Let a node be full that evicts nothing, until an embedder is seen to wait for it."""
    victim = _primary(scene, step)
    draw = scene.draw(step)
    signs = Signs(scene.services.values(), {"retries of the store"})
    with cluster_faults.configured(victim, maxmemory=cluster_faults.memory_counted(victim) // 2):
        for _ in range(_UPLOADS):
            scene.publisher.add(extra_upload(draw, scene.sources.fast, draw.choice(scene.sources.files)))
        _hold(step, signs)
    return Outcome(bool(signs), str(signs))


def flush(scene: Scene, step: Step) -> Outcome:
    """Remove all that a node and its replica have, as somebody may by mistake."""
    lost = cluster_faults.flush(_with_clips(_primary(scene, step)))
    clip_ids = {*clips_of(lost)}
    scene.ledger.forget(clip_ids)
    return Outcome(bool(clip_ids), f"{len(lost)} keys, of {len(clip_ids)} clips")


def rotate_password(scene: Scene, step: Step) -> Outcome:
    """Let all nodes take another password only, and write it into the services' file when they are seen to miss it."""
    store = _store(scene)
    signs = _signs(scene)
    with _incomplete(scene, degraded=True), scene.refused_by_the_store("WRONGPASS"):
        try:
            refused = store.rotate(f"{scene.draw(step).getrandbits(64):x}")
            _hold(step, signs)
        finally:
            store.tell_password()
    return Outcome(refused and bool(signs), str(signs))


def readdress(scene: Scene, _step: Step) -> Outcome:
    """Start all nodes at other addresses at once; the names that the services know lead to them."""
    signs = _signs(scene)
    with _incomplete(scene, degraded=True):
        moved = _store(scene).move()
        signs.look()
    return Outcome(moved, str(signs))


def clips_of(keys: Iterable[bytes]) -> Iterator[str]:
    """Return the clips whose records or tombstones are under some of the store's keys."""
    return (found[0].decode() for key in keys if (found := _CLIP.search(key)))


class _Named:
    """Which services have said that a condition does not hold, or have ended because of it."""

    def __init__(self, scene: Scene, condition: str) -> None:
        self._services = list(scene.services.values())
        self._condition = condition
        self._ends = {service: len(service.exits) for service in self._services}
        self._heard: set[str] = set()

    def everywhere(self) -> bool:
        """Ask once more, and tell whether all have said so."""
        for service in self._services:
            metrics = service.metrics()
            if (metrics is not None and self._condition in service.conditions(metrics)) or any(
                each.cause is Cause.STORE_REFUSED for each in service.exits[self._ends[service] :]
            ):
                self._heard.add(service.name)
        return not self.silent()

    def silent(self) -> list[str]:
        """Return the names of those that have not said so."""
        return [service.name for service in self._services if service.name not in self._heard]


def _store(scene: Scene) -> ClusterStore:
    assert isinstance(scene.store, ClusterStore), "the store is no cluster"
    return scene.store


def _cluster(scene: Scene) -> Cluster:
    return _store(scene).cluster


def _primary(scene: Scene, step: Step) -> Server:
    """Return the primary that a step hits."""
    return _cluster(scene).primaries()[int(step.victim.rpartition("-")[2]) % SHARDS]


def _with_clips(node: Server) -> Server:
    """Return a node as soon as it has clips to lose. Raises TimeoutError."""
    wait_until(lambda: any(clips_of(cluster_faults.keys_of(node))), seconds=_SHOWN_S, what="clips", pause=_PAUSE_S)
    return node


def _signs(scene: Scene) -> Signs:
    return Signs(scene.services.values(), OF_THE_STORE)


def _hold(step: Step, signs: Signs) -> None:
    """Leave things as they are for a while, and until a service shows it."""

    def is_shown() -> bool:
        signs.look()
        return bool(signs)

    began = time.monotonic()
    with suppress(TimeoutError):
        wait_until(is_shown, seconds=_SHOWN_S, what="the fault to show", pause=_PAUSE_S)
    time.sleep(max(0.0, began + step.seconds - time.monotonic()))


@contextmanager
def _incomplete(scene: Scene, *, degraded: bool = False) -> Iterator[None]:
    """Let queries be answered without some records meanwhile, or even without all, until everything is well again."""
    topic = INPUTS[RERANK]
    committed = scene.committed(RERANK)
    allow: Callable[[str, int, int, int], None] = (
        scene.ledger.allow_degraded if degraded else scene.ledger.allow_incomplete
    )
    try:
        yield
    finally:
        with suppress(TimeoutError):
            await_whole(scene)
        with suppress(TimeoutError):  # others may be broken meanwhile
            await_at_work(list(scene.services.values()), seconds=AT_WORK_S)
        time.sleep(_BACK_S)
        for number, end in scene.ends(topic).items():
            allow(topic, number, committed.get(number, 0), end)
