"""Carries a plan out, and says of each fault whether it really struck: what is not seen to strike did not."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.plan import BROKERS, Fault
from tests.chaos.services import Cause, limit_file_size
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.brokers import Brokers
    from tests.chaos.clock import Clock
    from tests.chaos.plan import Plan, Step
    from tests.chaos.services import Instance

_START_S = 90.0
_MOVE_S = 20.0
_WRITE_S = 20.0
_MOVED_PARTITIONS = 12
"""Of each input topic, as topics.toml has it."""


@dataclass(frozen=True, slots=True)
class Strike:
    """What came of one step, `at` so many true seconds after the start; a point is None where the step has none."""

    step: Step
    at: float
    fired: bool
    point_fired: bool | None = None
    note: str = ""


class Saboteur:
    """Runs the lanes of a plan side by side."""

    def __init__(
        self, plan: Plan, services: Mapping[str, Instance], brokers: Brokers, clock: Clock, *, limit_s: float
    ) -> None:
        """What has not struck after `limit_s` does not strike any more: a run must end."""
        self._plan = plan
        self._limit_s = limit_s
        self._services = services
        self._brokers = brokers
        self._clock = clock
        self.strikes: list[Strike] = []

    def run(self) -> None:
        """Carry out all steps; return when the last one is over."""
        lanes = [
            threading.Thread(target=self._run_lane, args=(lane, steps), name=f"{lane}-faults", daemon=True)
            for lane, steps in self._plan.lanes().items()
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    def _run_lane(self, lane: str, steps: Sequence[Step]) -> None:
        due = [*(step.at for step in steps), math.inf]
        self._clock.expect(lane, due[0])
        for step, following in zip(steps, due[1:], strict=True):
            self._clock.sleep_until(step.at)
            at = self._clock.wall()
            try:
                if at > self._limit_s:
                    raise TimeoutError("out of time")  # noqa: TRY301 - told like any other reason
                self._await_victim(step)
                self._clock.expect(lane, following)
                at = self._clock.wall()
                self.strikes.append(self._strike(step, at))
            except Exception as error:  # noqa: BLE001 - a fault that did not come about is a finding of the run
                self._clock.expect(lane, following)
                self.strikes.append(Strike(step, at, fired=False, note=f"{type(error).__name__}: {error}"))

    def _strike(self, step: Step, at: float) -> Strike:
        match step.fault:
            case Fault.KILL:
                return self._kill(step, at)
            case Fault.FREEZE:
                return self._freeze(step, at)
            case Fault.UNWRITABLE:
                return self._starve(step, at)
            case Fault.BROKER_KILL | Fault.BROKER_RESTART:
                return self._break_broker(step, at)

    def _await_victim(self, step: Step) -> None:
        """Wait until the victim works: to kill what has not begun shows nothing."""
        if step.fault in {Fault.BROKER_KILL, Fault.BROKER_RESTART}:
            self._brokers.await_in_sync()
            return
        needed = [self._services[step.victim]] if step.fault is Fault.KILL else self._role(step.lane)
        wait_until(
            lambda: all(instance.is_at_work() for instance in needed), seconds=_START_S, what=f"{step.victim} to work"
        )

    def _role(self, role: str) -> list[Instance]:
        return [instance for instance in self._services.values() if instance.command == role]

    # -- the faults ----------------------------------------------------------------------------------------

    def _kill(self, step: Step, at: float) -> Strike:
        victim = self._services[step.victim]
        count = len(victim.exits)
        ended = victim.kill(step.point)
        fired = ended.cause is Cause.KILLED
        if not step.point:
            return Strike(step, at, fired)
        again = victim.await_exit(count + 1, seconds=_START_S)
        return Strike(step, at, fired, again.cause is Cause.FAULT_POINT, note=again.cause)

    def _freeze(self, step: Step, at: float) -> Strike:
        """Stop a process, and see that the others of its group own everything before it goes on."""
        victim = self._services[step.victim]
        others = [instance for instance in self._role(step.lane) if instance is not victim]
        pid = victim.pid
        victim.signal(pid, signal.SIGSTOP)
        try:
            time.sleep(step.seconds)
            stopped = _state(pid) == "T"
            wait_until(
                lambda: sum(other.assigned() for other in others) == _MOVED_PARTITIONS,
                seconds=_MOVE_S,
                what=f"the partitions of {step.victim} to move",
            )
            still = _state(pid) == "T"
        finally:
            victim.signal(pid, signal.SIGCONT)
        return Strike(step, at, stopped and still, note=f"stopped for {self._clock.wall() - at:.1f} s")

    def _starve(self, step: Step, at: float) -> Strike:
        """Let no process of a role write files for a while, and see each of them try in vain."""
        victims = self._role(step.lane)
        pids = [victim.pid for victim in victims]
        before = [_store_retries(victim) for victim in victims]
        for pid in pids:
            limit_file_size(pid, 0)
        risen = [0.0 for _ in victims]

        def all_failed() -> bool:
            risen[:] = [_store_retries(victim) - earlier for victim, earlier in zip(victims, before, strict=True)]
            return all(count > 0 for count in risen)

        try:
            time.sleep(step.seconds)
            with suppress(TimeoutError):
                wait_until(all_failed, seconds=_WRITE_S, what="a write of each")
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    limit_file_size(pid, None)
        retries = ", ".join(f"{victim.name} {count:.0f}" for victim, count in zip(victims, risen, strict=True))
        return Strike(step, at, all(count > 0 for count in risen), note=f"failed writes: {retries}")

    def _break_broker(self, step: Step, at: float) -> Strike:
        node_id = int(step.victim.rpartition("-")[2])
        assert node_id < BROKERS
        if step.fault is Fault.BROKER_KILL:
            fired = self._brokers.kill(node_id, away_s=step.seconds)
        else:
            fired = self._brokers.restart(node_id)
        return Strike(step, at, fired)


def _state(pid: int) -> str:
    """Return the state of a process as /proc has it: T where it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _store_retries(instance: Instance) -> float:
    metrics = instance.metrics()
    assert metrics is not None, f"{instance.name} does not answer"
    return metrics.total("streamer_retries_total", stage="store")
