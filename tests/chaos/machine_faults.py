"""What is done to the machine under the services: its disk, descriptors, processes and memory, and the store's file."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from tests.chaos.inputs import extra_query, extra_upload
from tests.chaos.kinds import RERANK
from tests.chaos.machine import Filler, no_more_processes
from tests.chaos.scene import INPUTS, Outcome
from tests.chaos.service_faults import state
from tests.chaos.services import Cause, await_at_work
from tests.chaos.signs import Rise
from tests.support.processes import children, limited
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene
    from tests.chaos.services import Instance

_SHOWN_S = 40.0
_OVER_S = 20.0
"""A busy machine gets three times as long for either."""
_PAUSE_S = 0.3
_UPLOADS = 12
"""Published while something is scarce: so many that each embedder has some of them, even if it has few partitions."""
_QUERIES = 20
_FEW_DESCRIPTORS = 24
"""Less than any service has open."""
_CONDITION = "machine"
_FORK_S = 120.0
_COUNTED_S = 5.0
_MAP_BYTES = 1 << 40


def fill_disk(scene: Scene, step: Step) -> Outcome:
    """Fill the temporary folder while there is something to download, and free it again."""
    assert scene.disk is not None, "the temporary folder is not on a disk of its own"
    victims = scene.role(step.role)
    lacks = Rise(victims, "streamer_machine_faults_total", lack="disk")
    with Filler(scene.disk) as filler:
        _publish(scene, scene.draw(step), scene.sources.fast)
        # What downloads that were under way have freed is taken too.
        harm = _hold(step, victims, lacks, filler.fill)
    return Outcome(lacks.everywhere, f"lacks of disk: {lacks}", harm=harm + _end_of(victims))


def limit_descriptors(scene: Scene, step: Step) -> Outcome:
    """Let a process open nothing for a while; what is open stays so."""
    victim = scene.services[step.victim]
    lacks = Rise([victim], "streamer_machine_faults_total", lack="descriptors")
    with limited(victim.pid, resource.RLIMIT_NOFILE, _FEW_DESCRIPTORS):
        _publish(scene, scene.draw(step), scene.sources.fast)
        harm = _hold(step, [victim], lacks)
    return Outcome(lacks.everywhere, f"lacks of descriptors: {lacks}", harm=harm + _end_of([victim]))


def limit_processes(scene: Scene, step: Step) -> Outcome:
    """Let a service and its decoders start neither processes nor threads for a while."""
    victim = scene.services[step.victim]
    lacks = Rise([victim], "streamer_machine_faults_total", lack="processes")
    with no_more_processes(victim.pid):
        _publish(scene, scene.draw(step), scene.sources.fast)
        harm = _hold(step, [victim], lacks)
    return Outcome(lacks.everywhere, f"lacks of processes: {lacks}", harm=harm + _end_of([victim]))


def _publish(scene: Scene, draw: random.Random, place: str) -> None:
    for _ in range(_UPLOADS):
        scene.publisher.add(extra_upload(draw, place, draw.choice(scene.sources.files)))


def _hold(step: Step, victims: Sequence[Instance], lacks: Rise, again: Callable[[], None] = lambda: None) -> list[str]:
    """Leave things as they are for a while, and until each victim counts what it lacks and says it is not ready."""
    named: set[Instance] = set()

    def is_shown() -> bool:
        again()
        for victim in victims:
            metrics = victim.metrics()
            if metrics is not None and _CONDITION in victim.conditions(metrics):
                named.add(victim)
        return lacks.look() and named.issuperset(victims)

    began = time.monotonic()
    with suppress(TimeoutError):
        wait_until(is_shown, seconds=_SHOWN_S, what="the lack to show", pause=_PAUSE_S)
    while time.monotonic() < began + step.seconds:
        is_shown()
        time.sleep(_PAUSE_S)
    silent = [victim for victim in victims if lacks.counts[victim] and victim not in named]
    return [f"{victim.name} does not say that it lacks something" for victim in silent]


def _end_of(victims: Sequence[Instance]) -> list[str]:
    """Wait until nothing waits for the machine any more; return who still does after a while."""

    def waiting() -> list[str]:
        scrapes = [(victim, victim.metrics()) for victim in victims]
        return [each.name for each, metrics in scrapes if metrics and _CONDITION in each.conditions(metrics)]

    try:
        wait_until(lambda: not waiting(), seconds=_OVER_S, what="the end of the lack", pause=_PAUSE_S)
    except TimeoutError:
        return [f"{name} lacks something long after it is there again" for name in waiting()]
    return []


def kill_decoder(scene: Scene, step: Step) -> Outcome:
    """Kill a clip's process while it decodes, and then the one that it was forked from, as the kernel may."""
    victim = scene.services[step.victim]
    draw = scene.draw(step)
    crashes = Rise([victim], "streamer_decoder_failures_total", cause="crashed")
    deadline = time.monotonic() + _FORK_S
    kills = 0
    while not crashes.everywhere and time.monotonic() < deadline:
        _publish(scene, draw, scene.sources.folder.as_uri())
        kills += _kill_fork_of(victim, deadline)
        # One that had sent its frames was killed in vain. The next one must not be the same clip's, with two attempts.
        with suppress(TimeoutError):
            wait_until(crashes.look, seconds=_COUNTED_S, what="the crash to be counted", pause=_PAUSE_S)
    template = _template_of(victim)
    os.kill(template, signal.SIGKILL)
    _publish(scene, draw, scene.sources.folder.as_uri())
    wait_until(lambda: _templates_of(victim) - {template}, seconds=_SHOWN_S, what="another template")
    return Outcome(crashes.everywhere, f"processes killed: {kills}; crashes: {crashes}")


def _templates_of(victim: Instance) -> set[int]:
    """Return the process of a service that forks its decoders; while it is replaced, there may be none, or two."""
    found = set()
    for pid in children(victim.pid):
        with suppress(OSError):
            if b"isolation.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def _template_of(victim: Instance) -> int:
    wait_until(lambda: _templates_of(victim), seconds=_SHOWN_S, what="a template")
    return max(_templates_of(victim))


def _kill_fork_of(victim: Instance, deadline: float) -> bool:
    """Kill a clip's process as soon as there is one, which lives for some milliseconds; return whether there was."""
    while time.monotonic() < deadline:
        template = _template_of(victim)
        forked = Path(f"/proc/{template}/task/{template}/children")
        with suppress(OSError):  # the template has ended
            while time.monotonic() < deadline:
                for pid in map(int, forked.read_text().split()):
                    with suppress(OSError):
                        if state(pid) != "Z":
                            os.kill(pid, signal.SIGKILL)
                            return True
                time.sleep(0.001)
    return False


def cut_store(scene: Scene, step: Step) -> Outcome:
    """Truncate the store's file under its readers, and put its end back; no record may be lost, nor a query held up.

    Queries may be answered without the store meanwhile. A process that reads just then may be killed by the kernel, and
    one that starts refuses to.
    """
    assert isinstance(scene.store, Path), "the store is no file"
    draw = scene.draw(step)
    victims = scene.role(step.role)
    topic = INPUTS[RERANK]
    degraded = Rise(victims, "streamer_events_degraded_total", reason="store_unavailable")
    ends_before = {victim: len(victim.exits) for victim in victims}
    committed = scene.committed(RERANK)

    def killed() -> set[Instance]:
        return {
            victim
            for victim in victims
            if any(each.cause is Cause.STORE_CUT for each in victim.exits[ends_before[victim] :])
        }

    def is_shown() -> bool:
        degraded.look()
        return all(degraded.counts[victim] or victim in killed() for victim in victims)

    for instance in scene.services.values():
        instance.store_cut = True
    began = time.monotonic()
    with truncated(scene.store, draw.uniform(0.1, 0.9)) as missing:
        for _ in range(_QUERIES):
            scene.publisher.add(extra_query(draw))
        with suppress(TimeoutError):
            wait_until(is_shown, seconds=_SHOWN_S, what="queries without a store", pause=_PAUSE_S)
        fired = is_shown()
        time.sleep(max(0.0, began + step.seconds - time.monotonic()))
    for number, end in scene.ends(topic).items():
        scene.ledger.allow_degraded(topic, number, committed.get(number, 0), end)
    with suppress(TimeoutError):  # others may be broken meanwhile
        await_at_work(list(scene.services.values()), seconds=_OVER_S)
    for instance in scene.services.values():
        instance.store_cut = False
    return Outcome(fired, f"{missing} bytes cut off; degraded: {degraded}; ended: {len(killed())}")


@contextmanager
def truncated(path: Path, share: float) -> Iterator[int]:
    """Have a store's file without its end meanwhile, of which ``share`` is left; yield how many bytes are missing.

    Nobody writes to the file as long as this transaction is open: what is put back is what was there.
    """
    environment = lmdb.open(str(path.parent), map_size=_MAP_BYTES, create=False)
    file = os.open(path, os.O_RDWR)
    try:
        with environment.begin(write=True):
            size = os.fstat(file).st_size
            keep = max(2, int(share * size) // resource.getpagesize()) * resource.getpagesize()
            end = os.pread(file, size - keep, keep)
            os.ftruncate(file, keep)
            try:
                yield len(end)
            finally:
                os.pwrite(file, end, keep)
    finally:
        os.close(file)
        environment.close()
