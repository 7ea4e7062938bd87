"""A real Prometheus with our rules beside a system under load: silent in peace, and each alert fires for its cause."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from confluent_kafka.admin import AdminClient

from streamer.local_kafka.broker import LocalKafka
from tests.support.configs import alter_config
from tests.support.dashboards import ALERTS, PANELS, RULES
from tests.support.driver import RERANKED
from tests.support.monitored import PATIENCE_S, System, sooner
from tests.support.picture import draw
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEACE_S = 12.0
"""Twice as long as most alerts wait here."""
WINDOW = "10s"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A broker of its own, since it is killed in the end."""
    with LocalKafka() as kafka, System(kafka, "watched.", tmp_path_factory.mktemp("system")) as running:
        yield running


@contextlib.contextmanager
def bad_input(system: System) -> Iterator[None]:
    flaws = ["uploads are poison", "uploads are late", "queries are poison", "queries are late", "clips are unknown"]
    with system.load.flawed(*flaws):
        yield


@contextlib.contextmanager
def bad_files(system: System) -> Iterator[None]:
    with system.load.flawed("bombs"):
        yield


@contextlib.contextmanager
def backlog(system: System) -> Iterator[None]:
    """More queries at once, an hour old, than are answered within seconds."""
    system.load.burst(30_000)
    yield


@contextlib.contextmanager
def damaged_records(system: System) -> Iterator[None]:
    assert system.damage_the_store()
    yield


@contextlib.contextmanager
def unreadable_batch(system: System) -> Iterator[None]:
    """A few kB that decompress to more than any buffer of the services."""
    system.load.unreadable()
    yield


@contextlib.contextmanager
def slow_store(system: System) -> Iterator[None]:
    with system.stuttering_store():
        yield


@contextlib.contextmanager
def store_away(system: System) -> Iterator[None]:
    with system.load.flawed("records are old"), system.frozen_store():
        yield


@contextlib.contextmanager
def outputs_refused(system: System) -> Iterator[None]:
    """Somebody has made the output topic's limit too small."""
    admin = AdminClient({"bootstrap.servers": system.kafka.bootstrap_servers})
    limit = partial(alter_config, admin, system.bus.prefix + RERANKED, "max.message.bytes")
    limit("500")
    try:
        yield
    finally:
        limit("8388608")


@contextlib.contextmanager
def crashes(system: System) -> Iterator[None]:
    for _ in range(3):
        system.crash("embed-b")
    yield


@contextlib.contextmanager
def one_embedder_gone(system: System) -> Iterator[None]:
    system.kill("embed-a")
    yield


@contextlib.contextmanager
def both_embedders_gone(system: System) -> Iterator[None]:
    system.kill("embed-a")
    system.kill("embed-b")
    yield


@contextlib.contextmanager
def broker_gone(system: System) -> Iterator[None]:
    system.kafka.kill(0)
    yield


CAUSES: dict[Callable[[System], contextlib.AbstractContextManager[None]], set[str]] = {
    bad_input: {
        "StreamerQueriesDeadLettered", "StreamerUploadsDeadLettered", "StreamerRerankSlow", "StreamerSearchStale",
        "StreamerCandidatesNotEmbedded",
    },
    damaged_records: {"StreamerCorruptRecords"},
    unreadable_batch: {"StreamerUnreadable"},
    slow_store: {"StreamerStoreSlow"},
    store_away: {
        "StreamerStoreUnavailable", "StreamerDegraded", "StreamerUploadsLate", "StreamerStuck",
    },
    backlog: {"StreamerRerankLate"},
    outputs_refused: {"StreamerTransactionsFailing"},
    bad_files: {"StreamerDecodersFailing"},
    crashes: {"StreamerRestarting"},
    one_embedder_gone: {"StreamerInstanceDown", "StreamerPartitionsUnowned"},
    both_embedders_gone: {"StreamerDown"},
    broker_gone: {"StreamerNotReady"},
}  # fmt: skip
"""What is done, in this order, and what must fire of it. The last ones leave a system behind that does not work."""
LONG = {bad_files, crashes}
"""Half a minute and more; `make alerts` sets ALERTS=all and runs them too."""
RUN = [cause for cause in CAUSES if cause not in LONG or os.environ.get("ALERTS") == "all"]


RULES_ONLY = {
    "StreamerLogReset", "StreamerTopicRecreated", "StreamerRetentionLoss", "StreamerUpstreamTransactionOpen",
    "StreamerCommitMetadataRefused", "StreamerMachineShort", "StreamerStoreEvicting", "StreamerStoreMemoryLow",
    "StreamerStoreReplicaLag", "StreamerGroupDown",
}  # fmt: skip
"""Alerts whose cause no system here is made to have; tests/data/prometheus/rules_test.yml lets each fire."""


def test_every_alert_has_a_cause_here_or_is_named_as_tested_by_its_rule_alone() -> None:
    caused = set().union(*CAUSES.values())
    assert caused | RULES_ONLY == ALERTS.keys()
    assert not caused & RULES_ONLY


def test_the_rules_under_test_differ_from_ours_in_their_times_only() -> None:
    ours, tested = yaml.safe_load(RULES.read_text()), yaml.safe_load(sooner(RULES.read_text()))
    for group, other in zip(ours["groups"], tested["groups"], strict=True):
        for rule, changed in zip(group["rules"], other["rules"], strict=True):
            assert rule.keys() == changed.keys()
            assert all(rule[key] == changed[key] for key in rule if key not in {"expr", "for"})
            assert len(rule["expr"].split("[")) == len(changed["expr"].split("["))
            assert [part.split("]")[-1] for part in rule["expr"].split("[")] == [
                part.split("]")[-1] for part in changed["expr"].split("[")
            ]


def test_no_alert_fires_while_all_load_is_served(system: System) -> None:
    prometheus = system.prometheus
    served = 'sum(rate(streamer_events_produced_total{job="streamer-rerank"}[10s])) > 0'
    wait_until(lambda: prometheus.query(served), "answers", seconds=PATIENCE_S)
    quiet_since = time.monotonic()

    def is_quiet() -> bool:
        nonlocal quiet_since
        if prometheus.firing():
            quiet_since = time.monotonic()
        return time.monotonic() > quiet_since + PEACE_S

    # A machine that is busy with other tests may well be too slow for a while.
    wait_until(is_quiet, lambda: f"silence; fires: {prometheus.firing()}", seconds=PATIENCE_S)
    assert len(prometheus.query('up{job=~"streamer-(embed|rerank)"} == 1')) == 3
    assert len(prometheus.query("streamer_ready == 1")) == 3


def test_what_is_scraped_passes_promtool(system: System) -> None:
    for target in system.prometheus.ask("targets", state="active")["activeTargets"]:
        with urllib.request.urlopen(target["scrapeUrl"], timeout=10) as response:  # noqa: S310 - our own loopback URL
            text = response.read()
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboard_returns_data(system: System, tmp_path: Path) -> None:
    """Under a load of which a part is refused, and with a store that was away for a moment: nothing is left at none."""
    prometheus = system.prometheus
    with bad_input(system):
        with system.frozen_store():
            wait_until(lambda: prometheus.query("sum(streamer_retries_total) > 0"), "a retry", seconds=PATIENCE_S)
        # Those of `streamer exposure`, which does not run here: test_audit.py.
        queries = [query for panel in PANELS for query in panel.resolved(WINDOW) if "streamer_exposure" not in query]
        empty: list[str] = []

        def complete() -> bool:
            empty[:] = [query for query in queries if not prometheus.query(query)]
            return not empty

        wait_until(complete, lambda: "data of\n" + "\n".join(empty), seconds=PATIENCE_S)
        if "DASHBOARD_PICTURE" in os.environ:
            time.sleep(60)  # for lines instead of dots
    picture = Path(os.environ.get("DASHBOARD_PICTURE", tmp_path / "dashboard.png"))
    draw(prometheus, PANELS, picture)
    assert picture.stat().st_size > 50_000


@pytest.mark.parametrize("cause", RUN, ids=lambda cause: cause.__name__)
def test_each_alert_fires_for_its_cause(
    cause: Callable[[System], contextlib.AbstractContextManager[None]], system: System
) -> None:
    with cause(system):
        said = system.prometheus.await_firing(CAUSES[cause])
    for told in said.values():
        for text in told.values():
            assert "<" not in text, text
            assert "NaN" not in text, text
