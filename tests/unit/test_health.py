"""The probes over real HTTP: they tell what is dead and what is waited for."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_type_hints

import pytest
import structlog
import structlog.testing

from streamer import health as health_module
from streamer.endpoints.serving import Endpoints
from streamer.health import LOOP_STALL_TIMEOUT_S, Health
from streamer.metrics import CATALOGUE, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics) -> Health:
    return Health(metrics)


@pytest.fixture
def server(health: Health, metrics: Metrics) -> Iterator[Endpoints]:
    server = Endpoints(health, metrics, host="127.0.0.1", port=0)
    yield server
    server.close()


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock of health by one that stands still but for these sleeps."""
    now = [1000.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(health_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return advance


def get(server: Endpoints, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_reasons_that_alternate_are_logged_now_and_then_and_are_all_shown(
    health: Health, sleep: Callable[[float], None]
) -> None:
    with structlog.testing.capture_logs() as logged:
        for number in range(100):
            reason = f"node {number % 2} is away"
            health.not_ready("store", reason)
            assert f"store: {reason}" in health.readiness_problems()
            sleep(0.25)
        health.ready("store")
        health.not_ready("store", "node 1 is away")
    assert [entry["event"] for entry in logged] == [
        *["condition not ready"] * 3,
        "condition ready",
        "condition not ready",
    ]


def test_ready_only_when_every_condition_holds(server: Endpoints, health: Health) -> None:
    health.not_ready("broker", "no answer from kafka:9092")
    assert get(server, "/readyz") == (503, "start: starting\nbroker: no answer from kafka:9092\n")
    health.ready("start")
    assert get(server, "/readyz") == (503, "broker: no answer from kafka:9092\n")
    health.ready("broker")
    assert get(server, "/readyz") == (200, "ok\n")
    assert "streamer_ready 1.0" in get(server, "/metrics")[1]
    health.not_ready("store", "disk full")
    assert "streamer_ready 0.0" in get(server, "/metrics")[1]
    assert get(server, "/readyz") == (503, "store: disk full\n")


def test_a_note_is_shown_by_readyz_and_does_not_change_readiness(server: Endpoints, health: Health) -> None:
    health.note("decoder sandbox", "seccomp")
    assert get(server, "/readyz") == (503, "start: starting\ndecoder sandbox: seccomp\n")
    health.ready("start")
    assert get(server, "/readyz") == (200, "ok\ndecoder sandbox: seccomp\n")
    assert get(server, "/livez") == (200, "ok\n")


def test_a_note_is_told_until_its_time_is_over_or_it_is_taken_back(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 100.0
    monkeypatch.setattr(health_module, "time", SimpleNamespace(monotonic=lambda: at))
    health.note("short", "one", seconds=5)
    health.note("long", "two")
    at = 104.9
    assert health.notes() == ["short: one", "long: two"]
    at = 105.0
    assert health.notes() == ["long: two"]
    health.note("long", None)
    health.note("long", None)
    assert health.notes() == []


def test_a_dead_thread_is_not_live(server: Endpoints, health: Health) -> None:
    assert get(server, "/livez") == (200, "ok\n")
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    health.watch("encode-0", thread.is_alive)
    assert get(server, "/livez") == (503, "encode-0 is dead\n")


def test_a_loop_that_no_longer_iterates_is_not_live(sleep: Callable[[float], None], health: Health) -> None:
    health.beat()
    sleep(LOOP_STALL_TIMEOUT_S - 1)
    assert health.liveness_problems() == []
    sleep(2)
    assert "has not iterated" in health.liveness_problems()[0]
    health.beat()
    assert health.liveness_problems() == []


def test_a_worker_is_stuck_in_its_work_alone(metrics: Metrics, sleep: Callable[[float], None]) -> None:
    health = Health(metrics, worker_stall_timeout=10)
    me = threading.current_thread().name
    with health.busy():
        sleep(11)
        assert health.liveness_problems()[0].startswith(f"{me} has been busy with one call")
        health.progress()
        assert health.liveness_problems() == []
        with health.idle():
            sleep(11)
            assert health.liveness_problems() == []
        assert health.liveness_problems() == []  # the time starts again
    sleep(11)
    assert health.liveness_problems() == []
    health.progress()
    with health.idle():
        pass
    sleep(11)
    assert health.liveness_problems() == []


def test_other_paths_are_answered_with_the_known_ones(server: Endpoints) -> None:
    status, text = get(server, "/")
    assert status == 404
    assert "/metrics" in text


def test_a_port_that_is_taken_raises(server: Endpoints, health: Health, metrics: Metrics) -> None:
    with pytest.raises(OSError, match="in use"):
        Endpoints(health, metrics, host="127.0.0.1", port=server.port)


def test_the_catalogue_is_what_is_exposed(server: Endpoints) -> None:
    text = get(server, "/metrics")[1]
    for metric in CATALOGUE.values():
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert f"# TYPE {family}{'_total' if metric.kind == 'counter' else ''} {metric.kind}" in text
    assert "process_resident_memory_bytes" in text


def test_each_metric_is_declared_as_the_kind_that_is_made_of_it(metrics: Metrics) -> None:
    made = {name: type(getattr(metrics, name)) for name in CATALOGUE}
    assert made == get_type_hints(Metrics)
