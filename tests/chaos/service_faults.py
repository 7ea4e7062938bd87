"""What is done to the services: killed, stopped, starved, misled about the time, disturbed in their group."""

from __future__ import annotations

import math
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Consumer

from tests.chaos.scene import GROUPS, INPUTS, Outcome
from tests.chaos.services import Cause
from tests.chaos.signs import Rise
from tests.support.processes import limited
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene

_START_S = 240.0
_MOVE_S = 60.0
_WRITE_S = 60.0
_JOIN_S = 60.0
_JUMP_S = 7_200
_JUMP_BACK_S = 2.0
_CLOCK_TOLERANCE_S = 60.0
_FLAPS = 3


def kill(scene: Scene, step: Step) -> Outcome:
    """Kill a process; at a point, let the one after it die by itself."""
    victim = scene.services[step.victim]
    count = len(victim.exits)
    fired = victim.kill(step.point).cause is Cause.KILLED
    if not step.point:
        return Outcome(fired)
    again = victim.await_exit(count + 1, seconds=_START_S)
    return Outcome(fired, str(again.cause), again.cause is Cause.FAULT_POINT)


def restart(scene: Scene, step: Step) -> Outcome:
    """Ask a process to end, as a deployment does."""
    ended = scene.services[step.victim].restart()
    return Outcome(ended.cause is Cause.RESTARTED, f"exit code {ended.code}")


def freeze(scene: Scene, step: Step) -> Outcome:
    """Stop a process, and see that the others of its group own everything before it goes on."""
    victim = scene.services[step.victim]
    others = [instance for instance in scene.role(step.role) if instance is not victim]
    pid = victim.pid
    began = time.monotonic()
    victim.signal(pid, signal.SIGSTOP)
    try:
        time.sleep(step.seconds)
        stopped = state(pid) == "T"
        wait_until(
            lambda: sum(other.assigned() for other in others) >= len(scene.partitions(INPUTS[step.role])),
            seconds=_MOVE_S,
            what=f"the partitions of {step.victim} to move",
            pause=0.3,
        )
        still = state(pid) == "T"
    finally:
        victim.signal(pid, signal.SIGCONT)
    return Outcome(stopped and still, f"stopped for {time.monotonic() - began:.1f} s")


def starve(scene: Scene, step: Step) -> Outcome:
    """Let no process of a role write files for a while, and see each of them try in vain."""
    victims = scene.role(step.role)
    failed = Rise(victims, "streamer_retries_total", stage="store")
    with ExitStack() as stack:
        for victim in victims:
            stack.enter_context(limited(victim.pid, resource.RLIMIT_FSIZE, 0))
        time.sleep(step.seconds)
        with suppress(TimeoutError):
            wait_until(failed.look, seconds=_WRITE_S, what="failed writes", pause=0.3)
    return Outcome(failed.everywhere, f"failed writes: {failed}")


def c_compiler() -> str | None:
    """Return the path of a C compiler, None where there is none."""
    return shutil.which("cc")


class FalseTime:
    """The clock on the wall of processes that have :attr:`variables` in their environment.

    What is measured with the monotonic clock stays true, as on a host whose time is set.
    """

    def __init__(self, folder: Path) -> None:
        """Compile what is preloaded into ``folder``. Raises CalledProcessError, TypeError without a compiler."""
        compiler = c_compiler()
        if compiler is None:
            raise TypeError("there is no C compiler")
        self._offset = folder / "offset"
        self.shift(0.0)
        library = folder / "false_time.so"
        source = Path(__file__).with_name("false_time.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.variables = {"LD_PRELOAD": str(library), "FALSE_TIME_FILE": str(self._offset)}

    def shift(self, seconds: float) -> None:
        """Let the time be that many seconds ahead from now on."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


def shift_clock(scene: Scene, step: Step) -> Outcome:
    """Let a process's clock jump two hours ahead while it works, then two hours behind, and to the right time again."""
    victim = scene.services[step.victim]
    off = []
    with tempfile.TemporaryDirectory(prefix="streamer-time-") as folder:
        time_of_victim = FalseTime(Path(folder))
        victim.kill(variables=time_of_victim.variables)
        wait_until(victim.is_at_work, seconds=_START_S, what=f"{step.victim} to work under a false time")
        for shift in (_JUMP_S, -_JUMP_S, 0):
            time_of_victim.shift(shift)
            time.sleep(step.seconds / 2 if shift else _JUMP_BACK_S)
            ahead = victim.ahead_s()
            off.append(math.inf if ahead is None else ahead - shift)
        victim.kill()
    told = ", ".join(f"{each:.0f} s" for each in off)
    return Outcome(all(abs(each) < _CLOCK_TOLERANCE_S for each in off), f"off the time that was set by {told}")


def flap(scene: Scene, step: Step) -> Outcome:
    """Let a stranger join the group, take partitions, do nothing with them and leave; again and again."""
    taken = []
    for _ in range(_FLAPS):
        member = Consumer(
            {
                "bootstrap.servers": scene.bus.bootstrap_servers,
                "group.id": scene.full(GROUPS[step.role]),
                "group.protocol": scene.protocols[step.role],
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **(
                    {"partition.assignment.strategy": "cooperative-sticky"}
                    if scene.protocols[step.role] == "classic"
                    else {}
                ),
            }
        )
        try:
            member.subscribe([scene.full(INPUTS[step.role])])
            deadline = time.monotonic() + _JOIN_S
            while not member.assignment() and time.monotonic() < deadline:
                member.poll(0.2)
            taken.append(len(member.assignment()))
            deadline = time.monotonic() + step.seconds / _FLAPS
            while time.monotonic() < deadline:
                member.poll(0.2)
        finally:
            member.close()
    return Outcome(all(taken), f"partitions taken: {taken}")


def state(pid: int) -> str:
    """Return the state of a process as /proc has it: T where it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
