"""The two commands as processes: settings that cannot be used, brokers that are away, and a clean stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer.codec import JSON
from streamer.events import ClipUploaded, now
from streamer.kafka import Output
from streamer.kafka.readers.publish import publish
from streamer.settings import load
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.local_kafka.broker import LocalKafka

STREAMER = Path(sys.executable).with_name("streamer")


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    always = {"HF_HUB_OFFLINE": "1", "STREAMER_MODEL": "demo", "STREAMER_ALLOWED_URIS": '["file:/clips"]'}
    return {**clean, **always, **{f"STREAMER_{name.upper()}": text for name, text in variables.items()}}


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own loopback URL
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def running(command: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    process = subprocess.Popen(
        [STREAMER, command],
        env=environment(metrics_port=str(port), metrics_host="127.0.0.1", **variables),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def await_answer(url: str, wanted: str, seconds: float = 60) -> None:
    def answer() -> str:
        try:
            return get(url)[1]
        except OSError as error:
            return str(error)

    wait_until(lambda: wanted in answer(), lambda: f"{wanted!r} from {url}, which says {answer()!r}", seconds=seconds)


MISTAKES = [
    ("embed", {"model": ""}, "model", "name one"),
    ("rerank", {"model": ""}, "model", "name one"),
    ("embed", {"model": "ViT-B-23"}, "model", "unknown model 'ViT-B-23'; did you mean"),
    ("rerank", {"model": "ViT-B-32"}, "pretrained", "needs pretrained weights"),
    ("rerank", {"model": "ViT-B-32", "pretrained": "none.pt"}, "pretrained", "no such checkpoint file"),
    ("rerank", {"model": "local-dir:/nowhere"}, "model", "no such directory"),
    ("embed", {"store": "lmdb:/proc/none/store"}, "store", "/proc/none/store"),
    ("embed", {"store": "mongodb://localhost"}, "store", "unsupported store scheme 'mongodb'; supported: lmdb, redis,"),
    ("embed", {"allowed_uris": ""}, "allowed_uris", "name the places"),
    ("embed", {"allowed_uris": '["ftp://host/"]'}, "allowed_uris", "ftp"),
    ("embed", {"kafka__acks": "0", "kafka__enable_idempotence": "false"}, "kafka", "cannot be set"),
    ("rerank", {"kafka__no_such_property": "1"}, "kafka", "no.such.property"),
    ("rerank", {"alpha": "lots"}, "alpha", "valid number"),
    ("rerank", {"metrics_host": "203.0.113.1"}, "metrics_port", "cannot listen"),
]


@pytest.mark.parametrize(("command", "variables", "name", "problem"), MISTAKES)
def test_a_setting_that_cannot_be_used_ends_in_one_line_that_names_it(
    command: str, variables: dict[str, str], name: str, problem: str, tmp_path: Path
) -> None:
    given = {"store": f"lmdb:{tmp_path}", "metrics_port": "0", "bootstrap_servers": "127.0.0.1:1", **variables}
    done = subprocess.run(
        [STREAMER, command], env=environment(**given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("streamer: ")]
    assert len(told) == 1
    assert told[0].startswith(f"streamer: {name} (--{name.replace('_', '-')}, STREAMER_{name.upper()}): ")
    assert problem in told[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["embed", "rerank"])
def test_an_unreachable_broker_is_waited_for_and_readyz_says_so(command: str, tmp_path: Path) -> None:
    with running(command, bootstrap_servers="127.0.0.1:1", store=f"lmdb:{tmp_path}") as (process, url):
        await_answer(f"{url}/readyz", "broker: no ")
        await_answer(f"{url}/readyz", "transactions: ")
        assert get(f"{url}/readyz")[0] == 503
        assert get(f"{url}/livez") == (200, "ok\n")
        assert f'streamer_ready{{group="streamer-{command}"}} 0.0' in get(f"{url}/metrics")[1]
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert "transaction coordinator not reachable, retrying" in log


def test_a_crash_of_a_native_library_leaves_the_stacks_of_all_threads(tmp_path: Path) -> None:
    with running("rerank", bootstrap_servers="127.0.0.1:1", store=f"lmdb:{tmp_path}") as (process, url):
        await_answer(f"{url}/readyz", "transactions: ")
        process.send_signal(signal.SIGSEGV)
        _, log = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in log
    assert "streamer/kafka/loop.py" in log


def test_missing_topics_are_reported_and_sigterm_ends_it_cleanly(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "topic_prefix": topic_prefix,
        "store": f"lmdb:{tmp_path}",
    }
    with running("rerank", **settings) as (process, url):
        await_answer(f"{url}/readyz", f"topic: {topic_prefix}query.results does not exist")
        applied = subprocess.run(
            [STREAMER, "topics", "apply"], env=environment(**settings), capture_output=True, text=True, check=True
        )
        assert f"{topic_prefix}query.results: created" in applied.stdout
        await_answer(f"{url}/readyz", "ok\n")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
    checked = subprocess.run(
        [STREAMER, "topics", "check"], env=environment(**settings), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "all topics match the file\n")


def test_an_unreachable_broker_is_one_line_for_topics() -> None:
    done = subprocess.run(
        [STREAMER, "topics", "check"],
        env=environment(bootstrap_servers="127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("streamer: no response from Kafka at 127.0.0.1:1")
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def hung_embedder(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run an embedder whose only upload comes from a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        origin = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        settings = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": topic_prefix,
            "store": f"lmdb:{tmp_path}",
            "allowed_uris": f'["{origin}"]',
            "allowed_networks": '["127.0.0.0/8"]',
        }
        subprocess.run([STREAMER, "topics", "apply"], env=environment(**settings), capture_output=True, check=True)
        upload = ClipUploaded(clip_id="c1", uri=origin + "c1.mp4", uploaded_at=now())
        loaded = load({"bootstrap_servers": kafka.bootstrap_servers, "topic_prefix": topic_prefix})
        publish(loaded, [Output(loaded.topic("clips.uploaded"), b"c1", JSON.encode(upload), ())])
        with running("embed", **settings) as (process, url):
            labels = f'group="{topic_prefix}streamer-embed",topic="{topic_prefix}clips.uploaded"'
            await_answer(f"{url}/metrics", f"consumed_total{{{labels}}} 1.0")
            yield process


def test_sigterm_does_not_wait_for_hung_work(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    with hung_embedder(kafka, topic_prefix, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, log = process.communicate(timeout=60)  # its source would be silent for longer
        assert process.returncode == 0
        assert time.monotonic() - began > 5
        assert "abandoned" in log


def test_a_second_sigterm_ends_it_at_once(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    with hung_embedder(kafka, topic_prefix, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM  # abandoned work would end it with 0, after five seconds
