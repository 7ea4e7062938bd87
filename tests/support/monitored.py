"""A system under load and a real Prometheus that watches it with our rules, only sooner.

The rules are those of deploy/ after a mechanical change: every window is divided by 60, every `for` by 120, and none
is left shorter than four seconds. Thresholds stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from confluent_kafka import Producer

from streamer.demo.services import ServiceProcess
from tests.support.dashboards import RULES
from tests.support.driver import RESULTS, UPLOADED, Bus, apply_topics, environment
from tests.support.endless import write_endless_clip
from tests.support.footage import tiny_footage
from tests.support.redis_servers import Server
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

WINDOWS, WAITS, SHORTEST_S = 60, 120, 4
_SECONDS = {"s": 1, "m": 60, "h": 3600}
PATIENCE_S = 90.0


def sooner(rules: str) -> str:
    """Return the rules with windows and waits divided."""

    def divided(found: re.Match[str], by: int) -> str:
        seconds = int(found[2]) * _SECONDS[found[3]] // by
        return f"{found[1]}{max(SHORTEST_S, seconds)}s"

    rules = re.sub(r"(\[)(\d+)([smh])(?=\])", lambda found: divided(found, WINDOWS), rules)
    return re.sub(r"^( +for: )(\d+)([smh])$", lambda found: divided(found, WAITS), rules, flags=re.MULTILINE)


class Prometheus:
    """Debian's Prometheus in a folder: scrapes once a second, and is asked over HTTP."""

    def __init__(self, folder: Path, targets: dict[str, list[int]], *, rules: str | None = None) -> None:
        """``targets`` are ports by job; ``rules`` are ours, only sooner, where none are given."""
        folder.mkdir()
        self.port = free_port()
        self._folder = folder
        (folder / "rules.yml").write_text(sooner(RULES.read_text()) if rules is None else rules)
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in targets.items()
        ]
        pace = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        # JSON is YAML.
        config = {"global": pace, "rule_files": ["rules.yml"], "scrape_configs": scrapes}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={self._folder}/prometheus.yml",
                    f"--storage.tsdb.path={self._folder}/data", f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        wait_until(self._is_ready, "Prometheus", seconds=PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Return the data of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now."""
        result: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return result

    def firing(self) -> dict[str, dict[str, str]]:
        """Return what fires now: the annotations of each alert by its name."""
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts if each["state"] == "firing"}

    def await_firing(self, wanted: set[str]) -> dict[str, dict[str, str]]:
        """Wait until each of these has fired, together or one after the other; return what they said."""
        seen: dict[str, dict[str, str]] = {}

        def done() -> bool:
            seen.update(self.firing())
            return wanted <= seen.keys()

        wait_until(done, lambda: f"{sorted(wanted - seen.keys())} to fire; fired: {sorted(seen)}", seconds=PATIENCE_S)
        return {name: seen[name] for name in wanted}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5):
                return True
        except OSError:
            return False


class Load:
    """Uploads and result lists without end, from a thread; ``flaws`` says what is wrong with them just now."""

    TICK_S = 0.2

    def __init__(self, bus: Bus, folder: Path) -> None:
        self.flaws: set[str] = set()
        self._files = [video.path for video in tiny_footage(folder)]
        self._bomb = folder / "endless.mp4"
        self.clips = [f"clip-{index}" for index in range(40)]
        self._prefix = bus.prefix
        self._servers = bus.bootstrap_servers
        self._producer = Producer({"bootstrap.servers": bus.bootstrap_servers, "linger.ms": 5, "log_level": 0})
        self._random = random.Random(7)  # noqa: S311 - no secrets
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.purge()

    @contextlib.contextmanager
    def flawed(self, *flaws: str) -> Iterator[None]:
        """Let something be wrong with what is sent."""
        if "bombs" in flaws and not self._bomb.exists():
            write_endless_clip(self._bomb)
        self.flaws = set(flaws)
        try:
            yield
        finally:
            self.flaws = set()

    def upload(self, clip_id: str, *, file: Path | None = None, age: float = 0.0) -> None:
        """Send one upload."""
        path = file or self._random.choice(self._files)
        self._send(UPLOADED, clip_id, {"clip_id": clip_id, "uri": path.as_uri(), "uploaded_at": _ago(age)})

    def burst(self, count: int) -> None:
        """Send result lists at once, each with a text of its own, as if they were an hour old."""
        for number in range(count):
            query_id = f"burst-{number}"
            results = [{"clip_id": clip, "score": 1.0} for clip in self.clips[:20]]
            event = {
                "query_id": query_id,
                "query": query_id,
                "engine": "engine",
                "issued_at": _ago(0),
                "results": results,
            }
            self._send(RESULTS, query_id, event, age=3600)

    def unreadable(self) -> None:
        """Send a few kB that decompress to more than the services' buffers hold."""
        limits = {"message.max.bytes": 100 << 20, "compression.type": "zstd"}
        producer = Producer({"bootstrap.servers": self._servers, **limits})
        producer.produce(self._prefix + RESULTS, bytes(32 << 20))
        assert producer.flush(30) == 0

    def flush(self) -> None:
        """Wait until everything is with the broker."""
        assert self._producer.flush(30) == 0

    def _run(self) -> None:
        while not self._stop.wait(self.TICK_S):
            self._number += 1
            for _ in range(5):
                self._ask()
            if "uploads are poison" in self.flaws:
                self._send(UPLOADED, f"poison-{self._number}", {"clip_id": 7})
            if "uploads are late" in self.flaws and self._number % 3 == 0:
                # Of clips that are new, since an older upload than the one that is stored is not embedded.
                self.upload(f"late-{self._number}", age=3600)
            if self._number % 2:
                self.upload(self._random.choice(self.clips))
            elif self._number % 20 == 0:
                self._send(UPLOADED, f"none-{self._number}", None)
            if "bombs" in self.flaws and self._number % 5 == 0:
                self.upload(f"bomb-{self._number}", file=self._bomb)

    def _ask(self) -> None:
        clips = self._random.sample(self.clips, 20)
        if "clips are unknown" in self.flaws:
            clips[:16] = [f"unknown-{index}" for index in range(16)]
        query_id = f"query-{self._random.random()}"
        event = {
            "query_id": query_id,
            "query": f"a red disc number {self._random.randrange(50)}",
            "engine": "engine",
            "issued_at": _ago(10 if "queries are late" in self.flaws and self._random.random() < 0.2 else 0),
            "results": [{"clip_id": clip, "score": 20.0 - rank} for rank, clip in enumerate(clips)],
        }
        if "queries are poison" in self.flaws and self._random.random() < 0.2:
            event["query"] = " "
        self._send(RESULTS, query_id, event)

    def _send(self, topic: str, key: str, event: object, *, age: int = 0) -> None:
        value = None if event is None else json.dumps(event).encode()
        age = 3000 if "records are old" in self.flaws else age
        stamp = int(1000 * (time.time() - age))
        with contextlib.suppress(BufferError):  # the broker is away: nobody waits for the load
            self._producer.produce(self._prefix + topic, key=key.encode(), value=value, timestamp=stamp)
        self._producer.poll(0)


class System:
    """Two embedders, a reranker, a store and a load on a broker, and the Prometheus that watches them."""

    def __init__(self, kafka: LocalKafka, prefix: str, folder: Path) -> None:
        self.kafka = kafka
        self.bus = Bus(kafka.bootstrap_servers, prefix)
        clips = folder / "clips"
        clips.mkdir()
        self.store = Server(folder / "store")
        self.load = Load(self.bus, clips)
        self._folder = folder
        self._variables = environment(
            self.bus,
            folder,
            [clips],
            STREAMER_STORE=self.store.url,
            STREAMER_STORE_CACHE_BYTES="0",  # every read is the server's
            STREAMER_STORE_TIMEOUT="0.5",
            STREAMER_DECODE_TIMEOUT="2",
            STREAMER_LOG_FORMAT="json",
            # Small, so that a batch that no buffer holds is cheap to make.
            STREAMER_MAX_BATCH_BYTES="1048576",
            STREAMER_KAFKA__RECEIVE_MESSAGE_MAX_BYTES="4000000",
            STREAMER_KAFKA__FETCH_MAX_BYTES="2000000",
        )
        self._ports = {name: free_port() for name in ("embed-a", "embed-b", "rerank-a")}
        self._services: dict[str, ServiceProcess] = {}
        jobs = {"streamer-embed": ["embed-a", "embed-b"], "streamer-rerank": ["rerank-a"]}
        targets = {job: [self._ports[name] for name in names] for job, names in jobs.items()}
        self.prometheus = Prometheus(folder / "prometheus", targets)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._end)
            cleanup.enter_context(self.store)
            apply_topics(self._variables, self._folder)
            for name in self._ports:
                self.start(name)
            for service in self._services.values():
                service.await_ready()
            for clip_id in self.load.clips:
                self.load.upload(clip_id)
            self.load.flush()
            self.bus.await_group("streamer-embed", UPLOADED, seconds=PATIENCE_S, alive=[])
            cleanup.enter_context(self.load)
            cleanup.enter_context(self.prometheus)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def start(self, name: str) -> None:
        """Start a service by its name, which is its instance id too."""
        self._services[name] = ServiceProcess(
            name.partition("-")[0],
            {**self._variables, "STREAMER_INSTANCE_ID": name},
            log=self._folder / f"{name}.log",
            port=self._ports[name],
        )

    def kill(self, name: str) -> None:
        """End a service as a crash does."""
        process = self._services[name]._process
        process.kill()
        process.wait()

    def crash(self, name: str) -> None:
        """Kill a service, start it again, and return when Prometheus has seen the new process."""
        instance = f'{{instance="127.0.0.1:{self._ports[name]}"}}'

        def started() -> str:
            found = self.prometheus.query(f"process_start_time_seconds{instance} and on (instance) up{instance} == 1")
            return str(found[0]["value"][1]) if found else ""

        before = started()
        self.kill(name)
        self.start(name)
        wait_until(lambda: started() not in {"", before}, f"{name} to be scraped again", seconds=PATIENCE_S)

    def damage_the_store(self) -> int:
        """Flip the last byte of every record; return how many there were."""
        client = self.store.client()
        with contextlib.closing(client):
            keys = [key for key in client.scan_iter(count=1000) if client.type(key) == b"string"]
            records = [key for key in keys if client.strlen(key) > 100]
            for key in records:
                last = client.strlen(key) - 1
                byte: Any = client.getrange(key, last, last)  # bytes, since the client decodes nothing
                client.setrange(key, last, bytes([byte[0] ^ 0xFF]))
        return len(records)

    @contextlib.contextmanager
    def frozen_store(self) -> Iterator[None]:
        """Let the store's process stand still."""
        self.store.freeze()
        try:
            yield
        finally:
            self.store.thaw()

    @contextlib.contextmanager
    def stuttering_store(self) -> Iterator[None]:
        """Let the store stand still for three eighths of a second, again and again: slow, and within the timeout."""
        over = threading.Event()

        def stutter() -> None:
            while not over.is_set():
                self.store.freeze()
                over.wait(0.375)
                self.store.thaw()
                over.wait(0.125)

        thread = threading.Thread(target=stutter, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _end(self) -> None:
        for service in self._services.values():
            service._process.send_signal(signal.SIGKILL)
            service._process.wait()


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
