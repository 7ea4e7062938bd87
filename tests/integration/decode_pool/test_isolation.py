"""What a decoder's process has, which limits it is under, and by what it is confined."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streamer import service
from streamer.health import Health
from streamer.kafka import Stop
from streamer.machine import Lack
from streamer.metrics import Metrics
from streamer.service import Service
from streamer.settings import IntakeSettings, SettingsError
from streamer.video.isolation.confinement import MODES, Layer, SandboxError, landlock_abi
from streamer.video.isolation.pool import PoolClosedError
from streamer.video.isolation.process import _TEMPLATE
from tests.support.decode_pools import GOOD_SHADE, MEMORY, SAMPLING, Pools, decoded, reported, template_of
from tests.support.mean_colour import MeanColour
from tests.support.prepares import Act, report
from tests.support.processes import children
from tests.support.waiting import wait_until


def test_a_process_has_no_torch_no_kafka_client_no_secret_and_no_descriptor_of_the_service(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_KAFKA__SASL_PASSWORD", "secret")
    told = reported(decoded(pools.make(report), clips[GOOD_SHADE]))
    assert {"torch", "torchvision", "open_clip", "confluent_kafka", "lmdb", "pytest"}.isdisjoint(told["modules"])
    assert {"aiohttp", "botocore", "fsspec"}.isdisjoint(told["modules"]), "what only fetching needs"
    assert told["environment"] == []
    # The standard ones, the answers' socket and the clip.
    assert told["descriptors"] == [0, 1, 2, 3, 4]


def test_limits_are_in_force_before_a_clip_is_opened(pools: Pools, clips: dict[int, Path]) -> None:
    told = reported(decoded(pools.make(report, timeout=77.5), clips[GOOD_SHADE]))
    assert told["limits"] == {
        "AS": [MEMORY, MEMORY],
        "CORE": [0, 0],
        "CPU": [79, 80],
        "FSIZE": [0, 0],
        "NOFILE": [32, 32],
    }
    assert told["interrupt_ignored"]
    assert told["terminate_default"]


def test_a_process_gives_way_to_the_service_and_its_template_has_one_thread(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make()
    assert Layer.SECCOMP in pool.layers, "it has started, and with that forked what tries the layers"
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(decoded, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        (pid,) = children(template_of(pool))
        wait_until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n")
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert len(os.listdir(f"/proc/{template_of(pool)}/task")) == 1  # noqa: PTH208
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result()


def test_without_a_filter_of_system_calls_nothing_is_decoded_unless_that_is_allowed(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.video.isolation.process._TEMPLATE", WITHOUT_SECCOMP)
    told: list[Layer] = []
    pool = pools.make(confined=told.append)
    with pytest.raises(SandboxError, match="seccomp") as raised, pool.sampled(clips[GOOD_SHADE]):
        pass
    assert raised.value.lack is Lack.SANDBOX
    assert Layer.SECCOMP not in told[0]
    weaker = pools.make(sandbox="permissive")
    assert len(decoded(weaker, clips[GOOD_SHADE]).frames) == 3
    assert weaker.layers == told[0]


def test_a_service_without_a_filter_of_system_calls_does_not_start_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.video.isolation.process._TEMPLATE", WITHOUT_SECCOMP)
    metrics = Metrics()
    running = Service("embed", metrics, Health(metrics), None, Stop(), threading.Event())
    with pytest.raises(SettingsError, match=r"decoder_sandbox.*seccomp.*permissive"):
        service._decoder(SAMPLING, IntakeSettings(), MeanColour(), running)
    pool = service._decoder(SAMPLING, IntakeSettings(decoder_sandbox="permissive"), MeanColour(), running)
    pool.close()
    mode = pool_mode(metrics)
    assert mode in {"landlock", "none"}
    assert running.health.notes() == [f"decoder sandbox: {mode}"]


def test_a_service_reports_how_its_decoders_are_confined() -> None:
    metrics = Metrics()
    running = Service("embed", metrics, Health(metrics), None, Stop(), threading.Event())
    service._decoder(SAMPLING, IntakeSettings(), MeanColour(), running).close()
    assert pool_mode(metrics) == ("seccomp+landlock" if landlock_abi() else "seccomp")


def pool_mode(metrics: Metrics) -> str:
    """Return the one mode whose gauge is 1."""
    (mode,) = [
        mode for mode in MODES if metrics.registry.get_sample_value("streamer_decoder_sandbox", {"mode": mode}) == 1
    ]
    return mode


WITHOUT_SECCOMP = _TEMPLATE.replace(
    "from streamer.video.isolation.worker",
    "from streamer.video.isolation import confinement\n"
    "def refuse(): raise OSError\n"
    "confinement._CONFINE[confinement.Layer.SECCOMP] = refuse\n"
    "from streamer.video.isolation.worker",
)
