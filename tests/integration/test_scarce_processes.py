"""Services of an ordinary user who may start no more processes or threads: root is held to no such limit."""

from __future__ import annotations

import http.client
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import ordinary
from tests.support.driver import RERANKED, RESULTS, Bus, Record, Service, apply_topics, environment
from tests.support.scarcity import asked
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.local_kafka.broker import LocalKafka

USER = 64_019
"""The limit is one of all processes that a user has, so no other test has this one."""
# GNU's OpenMP ends the process where it cannot start the threads of a matrix product; with one thread it starts none.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


LIMIT = 300
_SETTLED = 10
"""How many looks in a row, half a second apart, find the same number of threads."""
USE_UP = """
import threading, time
threading.stack_size(1 << 16)
for_ever, told = threading.Event(), False
while True:
    try:
        threading.Thread(target=for_ever.wait, daemon=True).start()
    except RuntimeError:
        if not told:
            told = print("none left", flush=True) is None
        time.sleep(0.01)
"""


@contextmanager
def none_left() -> Iterator[None]:
    """Let the user have all the threads that it may have meanwhile, also those that become free."""
    command = [*ordinary.becoming(USER), "prlimit", f"--nproc={LIMIT}", sys.executable, "-c", USE_UP]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"none left\n"
            yield
        finally:
            process.kill()


def await_all_threads(pid: int) -> None:
    """Wait until a service starts no more threads: librdkafka ends a process that lacks one for half a client."""
    counts: list[int] = []

    def is_settled() -> bool:
        counts.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        return len(counts) > _SETTLED and len({*counts[-_SETTLED:]}) == 1

    wait_until(is_settled, lambda: f"the threads to be the same: {counts[-_SETTLED:]}", seconds=120, pause=0.5)


def query(query_id: str) -> Record:
    return Record.of(
        query_id,
        {
            "query_id": query_id,
            "query": "a red ball",
            "engine": "e",
            "issued_at": "2026-11-30T00:00:00Z",
            "results": [{"clip_id": "c1", "score": 1.0}],
        },
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with ordinary.open_folder() as folder:
        yield folder


@pytest.mark.parametrize("command", ["embed", "rerank"])
def test_a_service_that_cannot_start_a_thread_ends_with_one_line(tmp_path: Path, folder: Path, command: str) -> None:
    variables = environment(Bus("127.0.0.1:1", ""), folder / "store", [folder], HOME=str(folder), **ONE_THREAD)
    before = [*ordinary.becoming(USER), "prlimit", "--nproc=1"]
    with Service(command, variables, tmp_path, before=before) as service:
        assert service.process.wait(300) == 1
        last = service.log().splitlines()[-1]
        assert last.startswith("streamer: this machine is short of processes: ")
        assert "Traceback" not in service.log()


def test_a_service_without_a_thread_to_spare_answers_queries_and_stops_cleanly(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, folder: Path
) -> None:
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, folder / "store", [], HOME=str(folder), **ONE_THREAD)
    apply_topics(variables, tmp_path)
    before = [*ordinary.becoming(USER), "prlimit", f"--nproc={LIMIT}"]
    with Service("rerank", variables, tmp_path, before=before) as service:
        service.await_ready(seconds=150)
        bus.publish(RESULTS, [query("q0")])
        wait_until(lambda: len(bus.read(RERANKED)) == 1, "the first answer", alive=[service])
        await_all_threads(service.process.pid)
        with none_left():
            bus.publish(RESULTS, [query("q1")])
            wait_until(lambda: len(bus.read(RERANKED)) == 2, "the answer", alive=[service])
            assert {record.event["query_id"] for record in bus.read(RERANKED)} == {"q0", "q1"}
            assert asked(service, "/livez") == (http.client.OK, ["ok"])
            service.stop()
        assert "Traceback" not in service.log()
