"""The service's processes: started again whenever they end, as by the supervisor that they have in production."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from streamer.faults import VARIABLE as FAULT_POINT
from streamer.scrape import Scrape
from tests.support.driver import STREAMER
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_POLL_S = 0.2
_PAUSE_S = 0.5
"""Between an end and the next start."""
_TAIL_LINES = 40
_WRONG_SETTING = 2
"""Exit code of a service that cannot open its store, among others."""
_STOP_S = 15.0
"""A service may take ten seconds from SIGTERM to its end."""

# As in streamer.local_kafka.jvm: the shell becomes the service after leaving a watcher behind, which ends the process
# group once this program is gone. Here the watcher must not hold the pipe that the log comes through.
_DIE_WITH_PARENT = 'exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec "$@"'


class Cause(StrEnum):
    """Why a process ended."""

    KILLED = "killed by us"
    FAULT_POINT = "died at its fault point"
    RESTARTED = "restarted in order"
    STOPPED = "stopped in order"
    FENCED = "fenced after it was frozen"
    STORE_CUT = "ended because its store's file was truncated"
    STORE_REFUSED = "ended at its start because the store refused it"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of one process; `code` is its wait status as :mod:`subprocess` gives it."""

    name: str
    pid: int
    code: int
    cause: Cause
    at: str
    lived_s: float
    log_tail: tuple[str, ...]


class Instance:
    """One `streamer embed` or `streamer rerank` under a stable name, process after process.

    A thread starts the process, drains its log into a file and starts the next one. The log goes through a pipe, so
    that a limit on the size of files hits the store and not the log.
    """

    def __init__(self, command: str, name: str, variables: Mapping[str, str], folder: Path) -> None:
        self.command = command
        self.name = name
        self.exits: list[Exit] = []
        self.said: Counter[str] = Counter()
        """How often each warning or error, and each change of the assignment, was logged."""
        self.store_cut = False
        """Whether the file of its store is truncated, upon which a process may end that reads or opens it."""
        self.store_refuses = ""
        """What the store says while it refuses whoever comes, upon which a process may end that starts."""
        self._variables = {
            **variables,
            "STREAMER_INSTANCE_ID": name,
            "STREAMER_METRICS_PORT": "0",
            "STREAMER_METRICS_HOST": "127.0.0.1",
            "STREAMER_LOG_FORMAT": "json",
        }
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._point = ""
        self._once: Mapping[str, str] = {}
        self._killed: int | None = None
        self._terminated: int | None = None
        self._frozen: int | None = None
        self._stopping = False
        self._halted = False
        self._thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    def start(self) -> None:
        """Start the process, and each of its successors."""
        self._thread.start()

    @property
    def pid(self) -> int:
        """The id of the running process. Raises ProcessLookupError where none runs just now."""
        process = self._process
        if process is None or process.poll() is not None:
            raise ProcessLookupError(f"{self.name} does not run")
        return process.pid

    @property
    def port(self) -> int:
        """The port of probes and metrics; 0 until the process has said it."""
        return self._port

    def metrics(self) -> Scrape | None:
        """Scrape /metrics; None while nobody answers."""
        url = f"http://127.0.0.1:{self._port}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            return Scrape.parse(response.read().decode(), at=time.monotonic())
        return None

    def is_at_work(self) -> bool:
        """Tell whether the process is ready and owns partitions."""
        metrics = self.metrics()
        return metrics is not None and bool(
            metrics.total("streamer_ready") and metrics.total("streamer_assigned_partitions")
        )

    def assigned(self) -> int:
        """Return how many partitions the process owns; 0 while it does not answer."""
        metrics = self.metrics()
        return int(metrics.total("streamer_assigned_partitions")) if metrics else 0

    @staticmethod
    def conditions(metrics: Scrape) -> set[str]:
        """Return the conditions of readiness that do not hold."""
        return {dict(labels)["condition"] for labels, value in metrics.series("streamer_unready").items() if value}

    def ahead_s(self) -> float | None:
        """Return how far the process's clock is ahead of ours, as its HTTP server tells the time; None without one."""
        url = f"http://127.0.0.1:{self._port}/livez"
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            return parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
        return None

    def kill(self, point: str = "", variables: Mapping[str, str] = {}) -> Exit:
        """Kill the process by SIGKILL and return its end.

        The next one, and only that, has ``variables`` besides, and dies by itself at ``point``.
        """
        with self._changed:
            pid, before = self.pid, len(self.exits)
            self._point = point
            self._once = variables
            self._killed = pid
        self.signal(pid, signal.SIGKILL)
        return self.await_exit(before, seconds=30)

    def restart(self) -> Exit:
        """Ask the process to end, and return its end; another one is started, unless the instance is halted."""
        with self._changed:
            self._terminated, before = self.pid, len(self.exits)
        self.signal(self._terminated, signal.SIGTERM)
        return self.await_exit(before, seconds=_STOP_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the process stand still meanwhile. Raises ProcessLookupError where none runs."""
        pid = self.pid
        self.signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                self.signal(pid, signal.SIGCONT)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stop the process in order, and start none for the time being. Raises TimeoutError."""
        self._halted = True
        try:
            self.restart()
            yield
        finally:
            self._halted = False

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to our process `pid`, as long as it is not reaped."""
        process = self._process
        if process is None or process.pid != pid:
            raise ProcessLookupError(f"{self.name} is no longer {pid}")
        if number is signal.SIGSTOP:
            self._frozen = pid
        process.send_signal(number)

    def await_exit(self, before: int, *, seconds: float) -> Exit:
        """Return the first end after the first `before` ones. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.exits) > before, seconds):
                raise TimeoutError(f"{self.name} still runs after {seconds:.0f} s")
            return self.exits[before]

    def stop(self) -> None:
        """Ask the process to end; nothing is started after it."""
        with self._changed:
            self._stopping = True
            with suppress(ProcessLookupError):
                self.signal(self.pid, signal.SIGTERM)

    def join(self, seconds: float) -> None:
        """Wait for the end that :meth:`stop` asked for, and enforce it after a while."""
        self._thread.join(seconds)
        self._stopping = True
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._stopping:
            if not self._halted:
                self._run_once()
            time.sleep(_PAUSE_S)

    def _run_once(self) -> None:
        with self._changed:
            if self._stopping:
                return
            point, self._point = self._point, ""
            once, self._once = self._once, {}
            armed = {**once, **({FAULT_POINT: point} if point else {})}
            began = time.monotonic()
            process = subprocess.Popen(
                ["/bin/sh", "-c", _DIE_WITH_PARENT, "sh", STREAMER, self.command],
                env={**self._variables, **armed},
                cwd=self._folder,
                stdin=subprocess.PIPE,
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            self._process = process
        tail = self._drain(process)
        code = process.wait()
        assert process.stdin is not None
        process.stdin.close()  # lets the watcher go
        self._port = 0
        ended = Exit(
            self.name,
            process.pid,
            code,
            self._cause(process.pid, code, point, tail),
            time.strftime("%H:%M:%S"),
            round(time.monotonic() - began, 1),
            tuple(tail),
        )
        with self._changed:
            self.exits.append(ended)
            self._changed.notify_all()

    def _cause(self, pid: int, code: int, point: str, tail: Iterable[str]) -> Cause:
        if code in {1, _WRONG_SETTING, -signal.SIGBUS}:
            return self._own_cause(pid, code, tail)
        if code == -signal.SIGKILL and pid == self._killed:
            return Cause.KILLED
        if code == -signal.SIGKILL and point:
            return Cause.FAULT_POINT
        if code == 0 and pid == self._terminated:
            return Cause.RESTARTED
        if code == 0 and self._stopping:
            return Cause.STOPPED
        return Cause.UNEXPECTED

    def _own_cause(self, pid: int, code: int, tail: Iterable[str]) -> Cause:
        """Return why a process ended by itself, as its code and last lines tell it, if what we did explains that."""
        said = "\n".join(tail)
        if self.store_cut and (code == -signal.SIGBUS or (code == _WRONG_SETTING and "truncated" in said)):
            return Cause.STORE_CUT
        if code == _WRONG_SETTING and self.store_refuses and self.store_refuses in said:
            return Cause.STORE_REFUSED
        if code != 1:
            return Cause.UNEXPECTED
        if pid == self._frozen and " is fenced: " in said:
            return Cause.FENCED
        return Cause.UNEXPECTED

    def _drain(self, process: subprocess.Popen[bytes]) -> deque[str]:
        """Copy the log until its end, and count what matters in it; return its last lines."""
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        assert process.stdout is not None
        with self._log.open("ab", buffering=0) as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                tail.append(line.decode(errors="replace").rstrip())
                with suppress(ValueError):
                    self._note(json.loads(line))
        return tail

    def _note(self, line: dict[str, Any]) -> None:
        event = str(line.get("event"))
        if event == "starting":
            self._port = int(line["metrics_port"])
        elif event == "partitions assigned":
            self.said[event] += 1
        elif event == "partitions released":
            self.said[f"partitions {line['why']}"] += 1
        elif line.get("level") in {"warning", "error", "critical"} and event != "dead letter":
            # librdkafka's lines begin with a word for the kind of event, and go on with addresses.
            self.said[f"librdkafka {event.split(maxsplit=1)[0]}" if line.get("logger") == "librdkafka" else event] += 1


def await_at_work(instances: list[Instance], *, seconds: float) -> None:
    """Wait until all of the instances work. Raises TimeoutError."""
    wait_until(lambda: all(instance.is_at_work() for instance in instances), seconds=seconds, what="all at work")
