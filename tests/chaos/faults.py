"""Carries a plan out, and says of each fault whether it really struck: what is not seen to strike did not."""

from __future__ import annotations

import math
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos import broker_faults, client_faults, machine_faults, service_faults, store_faults, topic_faults
from tests.chaos.kinds import BROKER, LANES, STORE, TOPIC, TRAITS, Fault
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.chaos.plan import Plan, Step
    from tests.chaos.scene import Outcome, Scene

_START_S = 240.0

HOW: Mapping[Fault, Callable[[Scene, Step], Outcome]] = {
    Fault.KILL: service_faults.kill,
    Fault.STOP: service_faults.restart,
    Fault.FREEZE: service_faults.freeze,
    Fault.UNWRITABLE: service_faults.starve,
    Fault.CLOCK: service_faults.shift_clock,
    Fault.FLAPPING: service_faults.flap,
    Fault.DISK_FULL: machine_faults.fill_disk,
    Fault.FEW_DESCRIPTORS: machine_faults.limit_descriptors,
    Fault.FEW_PROCESSES: machine_faults.limit_processes,
    Fault.DECODER_KILLED: machine_faults.kill_decoder,
    Fault.STORE_CUT: machine_faults.cut_store,
    Fault.IDLE_CLIENTS: client_faults.crowd_in,
    Fault.SLOW_SOURCE: client_faults.slow_down,
    Fault.BROKER_KILL: broker_faults.kill,
    Fault.BROKER_RESTART: broker_faults.restart,
    Fault.BROKER_HANG: broker_faults.freeze,
    Fault.BROKER_FROZEN: broker_faults.freeze_out_of_sync,
    Fault.TWO_FROZEN: broker_faults.freeze_two,
    Fault.ROLLING_RESTART: broker_faults.restart_in_turn,
    Fault.ALL_KILLED: broker_faults.kill_all,
    Fault.DISK_LOST: broker_faults.lose_disk,
    Fault.TRUNCATED: broker_faults.truncate,
    Fault.REASSIGNED: topic_faults.reassign,
    Fault.PARTITIONS_ADDED: topic_faults.add_partitions,
    Fault.THROTTLED: topic_faults.throttle,
    Fault.TIMESTAMPS_REFUSED: topic_faults.refuse_timestamps,
    Fault.TOO_FEW_IN_SYNC: topic_faults.require_all_replicas,
    Fault.OUTPUT_LIMITED: topic_faults.limit_output,
    Fault.DENIED: topic_faults.deny,
    Fault.HUNG_TRANSACTION: topic_faults.leave_transaction_open,
    Fault.UNREADABLE: topic_faults.write_unreadable,
    Fault.EXPIRED: topic_faults.delete_unread,
    Fault.OFFSETS_BACK: topic_faults.set_offsets_back,
    Fault.OFFSETS_BEYOND: topic_faults.set_offset_beyond,
    Fault.OUTPUT_RECREATED: topic_faults.recreate_output,
    Fault.INPUT_RECREATED: topic_faults.recreate_input,
    Fault.NODE_HANG: store_faults.hang,
    Fault.NODE_KILL: store_faults.kill,
    Fault.NODE_PROMOTED: store_faults.promote,
    Fault.SLOTS_MOVED: store_faults.move_slots,
    Fault.EVICTING: store_faults.evict,
    Fault.NODE_FULL: store_faults.fill,
    Fault.NODE_FLUSHED: store_faults.flush,
    Fault.PASSWORD_ROTATED: store_faults.rotate_password,
    Fault.READDRESSED: store_faults.readdress,
}


@dataclass(frozen=True, slots=True)
class Strike:
    """What came of one step, from `at` to `until` true seconds after the start; a point is None where it has none.

    ``harm``: what happened meanwhile that must not.
    """

    step: Step
    at: float
    until: float
    fired: bool
    point_fired: bool | None = None
    note: str = ""
    harm: Sequence[str] = ()


class Saboteur:
    """Runs the lanes of a plan side by side."""

    def __init__(self, plan: Plan, scene: Scene, log: Path, *, limit_s: float) -> None:
        """What has not struck after `limit_s` does not strike any more: a run must end. `log` takes a line for each."""
        self._log = log
        self._writing = threading.Lock()
        self._plan = plan
        self._limit_s = limit_s
        self._scene = scene
        self._clock = scene.clock
        self._free = {lane: threading.Lock() for lane in LANES}
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
            with ExitStack() as stack:
                for taken in step.lanes:
                    stack.enter_context(self._free[taken])
                self._strike(lane, step, following)

    def _note(self, strike: Strike) -> None:
        """Keep what came of a step, and write it down at once: a run that breaks off tells how far it came."""
        with self._writing:
            self.strikes.append(strike)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(
                    f"{strike.at:7.1f} s to {strike.until:7.1f} s  {'struck' if strike.fired else 'DID NOT STRIKE'}  "
                    f"{strike.step.victim}: {strike.step.fault}  {strike.note}"
                    f"{''.join(f'  HARM: {each}' for each in strike.harm)}\n"
                )

    def _strike(self, lane: str, step: Step, following: float) -> None:
        at = self._clock.wall()
        try:
            if at > self._limit_s:
                raise TimeoutError("out of time")  # noqa: TRY301 - told like any other reason
            self._await_victim(step)
            self._clock.expect(lane, following)
            at = self._clock.wall()
            came = HOW[step.fault](self._scene, step)
            self._note(Strike(step, at, self._clock.wall(), came.fired, came.point_fired, came.note, came.harm))
        except Exception as error:  # noqa: BLE001 - a fault that did not come about is a finding of the run
            self._clock.expect(lane, following)
            note = f"{type(error).__name__}: {error}"
            self._note(Strike(step, at, self._clock.wall(), fired=False, note=note))

    def _await_victim(self, step: Step) -> None:
        """Wait until the victim works: to kill what has not begun shows nothing."""
        if BROKER in step.lanes:
            self._scene.brokers.await_in_sync()
        if step.lane == STORE:
            store_faults.await_whole(self._scene)
        if step.lane == BROKER or (step.lane == TOPIC and not TRAITS[step.fault].stops_group):
            return
        # What is frozen leaves its partitions to the others.
        alone = step.victim in self._scene.services and step.fault is not Fault.FREEZE
        needed = [self._scene.services[step.victim]] if alone else self._scene.role(step.role)
        if step.lane == STORE:
            needed = [*self._scene.services.values()]
        wait_until(
            lambda: all(instance.is_at_work() for instance in needed), seconds=_START_S, what=f"{step.victim} to work"
        )
