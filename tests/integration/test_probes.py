"""The probes of real processes: what is dead or stuck shows in /livez, what is waited for in /readyz.

A broker that is away: test_services.py.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamer.metrics import CATALOGUE
from streamer.topology import SERVICES
from tests.support.driver import (
    EMBEDDED,
    RESULTS,
    UPLOADED,
    Bus,
    Record,
    Service,
    apply_topics,
    environment,
)
from tests.support.footage import GREEN, WHITE, scene, write_video
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

AT = "2026-11-24T10:00:00Z"


@dataclass
class Probed:
    """A service with a fault point, and what it answered first."""

    service: Service
    bus: Bus
    variables: dict[str, str]
    folder: Path
    first: tuple[int, str]

    def get(self, path: str) -> tuple[int, str]:
        return get(self.service.port, path)

    def await_answer(self, path: str, status: int, text: str) -> None:
        def answers() -> bool:
            code, body = self.get(path)
            return code == status and text in body

        wait_until(answers, f"{path} to say {text}", seconds=120, alive=[self.service])


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def first_answer(port: int) -> tuple[int, str]:
    answers: list[tuple[int, str]] = []

    def has_answered() -> bool:
        with contextlib.suppress(OSError):
            answers.append(get(port, "/readyz"))
        return bool(answers)

    wait_until(has_answered, "an answer", pause=0.02)
    return answers[0]


@pytest.fixture(scope="module")
def probed(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Probed]]:
    """Three services, started side by side, since each takes seconds for that; only the embedder has topics."""
    plans = {
        "loop": ("rerank", "transaction.begun:1:HANG"),
        "worker": ("rerank", "reranker.reranking:1:HANG"),
        "embed": ("embed", "embedder.encoding:1:DIE"),
    }
    with ExitStack() as running:
        found = {}
        for name, (command, plan) in plans.items():
            folder = tmp_path_factory.mktemp(name)
            bus = Bus(kafka.bootstrap_servers, f"probes-{name}.")
            variables = environment(
                bus,
                folder / "store",
                [folder],
                STREAMER_FAULT_POINT=plan,
                STREAMER_WORKER_STALL_TIMEOUT="10",
                STREAMER_FETCH_TIMEOUT="5",
                STREAMER_INSTANCE_ID=name,
            )
            if command == "embed":
                apply_topics(variables, folder)
            service = running.enter_context(Service(command, variables, folder))
            found[name] = Probed(service, bus, variables, folder, first_answer(service.port))
        yield found


@pytest.mark.parametrize("name", ["loop", "embed"])
def test_not_ready_while_the_model_is_loaded(probed: dict[str, Probed], name: str) -> None:
    status, text = probed[name].first
    assert status == 503
    assert "start: starting\n" in text


def test_not_ready_before_the_first_assignment_though_live(probed: dict[str, Probed]) -> None:
    for name in ("loop", "worker"):
        probed[name].await_answer("/readyz", 503, "assignment: no partitions assigned yet")
        probed[name].await_answer("/readyz", 503, "does not exist; streamer topics apply creates it")
        assert probed[name].get("/livez") == (200, "ok\n")
    for name in ("loop", "worker"):
        apply_topics(probed[name].variables, probed[name].folder)
    for name in ("loop", "worker"):
        probed[name].await_answer("/readyz", 200, "ok")


@pytest.mark.parametrize(("name", "topic"), [("loop", RESULTS), ("embed", UPLOADED)])
def test_promtool_finds_no_fault_with_what_a_service_shows(probed: dict[str, Probed], name: str, topic: str) -> None:
    group = f"probes-{name}.{SERVICES[probed[name].service.command].group}"
    probed[name].await_answer("/readyz", 200, "ok")
    probed[name].await_answer("/metrics", 200, f'streamer_consumer_lag_seconds{{group="{group}",partition="11"')
    # Comes with the next statistics of the client, up to a second after the assignment.
    probed[name].await_answer(
        "/metrics", 200, f'streamer_topic_partitions{{group="{group}",topic="probes-{name}.{topic}"}} 12.0'
    )
    status, text = probed[name].get("/metrics")
    assert status == 200
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {metric.name.removesuffix("_total") for metric in CATALOGUE.values()} <= set(families)
    assert {"process_resident_memory", "process_cpu_seconds"} <= {each.removesuffix("_bytes") for each in families}
    (model,) = families["streamer_model_info"].samples
    (build,) = families["streamer_build_info"].samples
    assert model.labels["model_id"] == build.labels["model_id"]
    assert model.labels["device"] == "cpu"


def test_a_consume_loop_that_stands_still_is_not_live(probed: dict[str, Probed]) -> None:
    for name in ("loop", "worker"):  # the next test's too, so that both wait at the same time
        query(probed[name])
    probed["loop"].await_answer("/livez", 503, "the consume loop has not iterated for")


def test_a_worker_that_does_not_end_its_batch_is_not_live(probed: dict[str, Probed]) -> None:
    probed["worker"].await_answer("/livez", 503, "rerank-0 has been busy with one call for")
    assert "consume loop" not in probed["worker"].get("/livez")[1]


def test_an_idle_service_is_not_ready_while_the_store_is_unreachable(probed: dict[str, Probed]) -> None:
    embedder = probed["embed"]
    embedder.await_answer("/readyz", 200, "ok")
    store = embedder.folder / "store"
    store.rename(embedder.folder / "elsewhere")
    embedder.await_answer("/readyz", 503, "store: ")
    assert embedder.get("/livez") == (200, "ok\n")
    (embedder.folder / "elsewhere").rename(store)
    embedder.await_answer("/readyz", 200, "ok")


def test_a_worker_that_died_is_not_live(probed: dict[str, Probed]) -> None:
    embedder = probed["embed"]
    path = write_video(embedder.folder / "c1.mp4", scene(10, shape=GREEN, ground=WHITE), 10)
    event = {"clip_id": "c1", "uri": path.as_uri(), "uploaded_at": AT}
    embedder.bus.publish(UPLOADED, [Record.of("c1", event)])
    embedder.await_answer("/livez", 503, "encode-0 is dead")
    assert embedder.bus.read(EMBEDDED) == []


def test_a_consume_loop_that_died_takes_the_process_with_it(probed: dict[str, Probed], tmp_path: Path) -> None:
    embedder = probed["embed"]
    with Service("embed", embedder.variables, tmp_path) as second:
        second.await_ready(seconds=120)

        def has_ended() -> bool:
            # Both use one transactional id, and whoever has its older epoch is fenced at its next commit.
            embedder.bus.publish(UPLOADED, [Record.of(f"gone-{number}", None) for number in range(50)])
            return embedder.service.process.poll() is not None

        wait_until(has_ended, "the first to end", pause=0.5)
    assert embedder.service.process.returncode == 1
    with pytest.raises(OSError, match="refused"):
        embedder.get("/livez")


def query(probed: Probed) -> None:
    event = {"query_id": "q1", "query": "a cat", "engine": "e", "issued_at": AT, "results": []}
    probed.bus.publish(RESULTS, [Record.of("q1", event)])
