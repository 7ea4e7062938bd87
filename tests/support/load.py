"""What the overload and soak tests share: backlogs, stores full of clips, clips that are slow to decode, and gauges."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import av
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from streamer.store import Clip, Position, StoreOptions, open_store
from tests.support.driver import EMBEDDED, RERANKED, RESULTS, UPLOADED, Record, drop_reached, model_dir
from tests.support.endless import write_endless_clip
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.driver import Bus, Service

MIB = 1 << 20

CLIPS = [f"clip-{index:04}" for index in range(1_000)]
_CLIPS_A_WRITE = 200


# -- what a running service says of itself -----------------------------------------------------------------------


class Metrics:
    """One reading of a service's /metrics."""

    def __init__(self, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            families = text_string_to_metric_families(response.read().decode())
            self._samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Add up the samples of that name that have these labels."""
        found = self._samples if not labels else [s for s in self._samples if labels.items() <= s.labels.items()]
        return sum(sample.value for sample in found if sample.name == name)

    def label(self, name: str, label: str) -> str:
        """Return a label of the one sample of that name."""
        [value] = [sample.labels[label] for sample in self._samples if sample.name == name]
        return value

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label on the samples of that name."""
        return {sample.labels.get(label, "") for sample in self._samples if sample.name == name}


class Memory:
    """Resident memory of a process, in bytes.

    ``rss`` is all of it; ``anonymous`` is what the process itself has allocated, ``file`` the pages of mapped files
    (libraries, weights, and the store's file as far as it has been read), which the kernel can take back at any time.
    """

    def __init__(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
        self.rss, self.anonymous, self.file = (
            1024 * int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon", "RssFile")
        )


class Watch:
    """Reads memory and in-flight bytes of a running service in a thread of its own.

    Memory ten times a second, which costs the service nothing; the metrics, which it has to write, once a second.
    """

    def __init__(self, service: Service) -> None:
        self.memory: list[Memory] = []
        self.in_flight_bytes: list[float] = []
        self._service = service
        self._end = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._end.wait(0.1):
                if len(self.memory) % 10 == 0:
                    self.in_flight_bytes.append(Metrics(self._service).total("streamer_in_flight_bytes"))
                self.memory.append(Memory(self._service.pid))
        except Exception as error:  # noqa: BLE001 - raised again where the watch ends
            self._error = error

    @property
    def peak_rss(self) -> int:
        return max(memory.rss for memory in self.memory)

    @property
    def peak_anonymous(self) -> int:
        return max(memory.anonymous for memory in self.memory)


# -- the store ---------------------------------------------------------------------------------------------------


def stored_dim() -> int:
    """Return the length of the small model's vectors."""
    return int(json.loads((model_dir() / "open_clip_config.json").read_bytes())["model_cfg"]["embed_dim"])


def fill_store(url: str, model_id: str, *, frames: int) -> None:
    """Write random unit vectors for each of :data:`CLIPS`: nothing about memory or speed depends on their direction."""
    dim = stored_dim()
    draw = np.random.default_rng(0)
    uploaded_at = datetime.now(UTC)
    store = open_store(url, model_id=model_id, dim=dim, options=StoreOptions(timeout_s=30))
    try:
        for first in range(0, len(CLIPS), _CLIPS_A_WRITE):
            store.put([_clip(clip_id, draw, (frames, dim), uploaded_at) for clip_id in CLIPS[first:][:_CLIPS_A_WRITE]])
    finally:
        store.close()


def _clip(clip_id: str, draw: np.random.Generator, shape: tuple[int, int], uploaded_at: datetime) -> Clip:
    vectors = draw.standard_normal(shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times = np.arange(shape[0], dtype=np.uint32) * 500
    return Clip(clip_id, uploaded_at, Position.of("test", 0), 500 * shape[0], vectors, times)


# -- query events ------------------------------------------------------------------------------------------------


def query_event(number: int, text: str, *, candidates: int, issued_at: datetime, size: int = 0) -> tuple[bytes, bytes]:
    """Return key and value of a query event over stored clips, padded to ``size`` bytes where it is smaller."""
    first = number * 37
    event: dict[str, Any] = {
        "query_id": f"q{number}",
        "query": text,
        "engine": "bm25-v3",
        "issued_at": issued_at.isoformat(),
        "results": [
            {"clip_id": CLIPS[(first + rank) % len(CLIPS)], "score": 30 - rank / 8} for rank in range(candidates)
        ],
    }
    value = json.dumps(event).encode()
    padding = size - len(value) - len(b', "pad": ""')
    if padding > 0:
        value = value[:-1] + b', "pad": "' + b"x" * padding + b'"}'
    return event["query_id"].encode(), value


def publish(bus: Bus, events: Iterable[tuple[bytes, bytes]]) -> int:
    """Publish query events as fast as the broker takes them, holding on to none; return how many."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer({"bootstrap.servers": bus.bootstrap_servers, "acks": "all", "linger.ms": 5})
    count = 0
    for key, value in events:
        while True:
            try:
                producer.produce(bus.prefix + RESULTS, key=key, value=value, on_delivery=delivered)
                break
            except BufferError:  # the client's queue is full
                producer.poll(0.1)
        producer.poll(0)
        count += 1
    assert producer.flush(60) == 0
    assert not failures, failures[0]
    return count


def read_answers(bus: Bus, *, seconds: float) -> Iterator[tuple[bytes, bytes]]:
    """Go through key and value of all that is committed in query.reranked, to its end, holding on to none."""
    ends = bus.ends(RERANKED)
    consumer = Consumer(
        {
            "bootstrap.servers": bus.bootstrap_servers,
            "group.id": f"{bus.prefix}answers",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    deadline = time.monotonic() + seconds
    try:
        consumer.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in ends])
        while ends:
            assert time.monotonic() < deadline, f"not committed up to {ends}"
            for message in consumer.consume(500, 0.2):
                error = message.error()
                if error is None:
                    yield message.key() or b"", message.value() or b""
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                else:
                    drop_reached(ends, message)
    finally:
        consumer.close()


def await_produced(service: Service, topic: str, count: int, *, seconds: float) -> None:
    """Wait until a service has committed so many outputs."""
    wait_until(
        lambda: Metrics(service).total("streamer_events_produced_total", topic=topic) >= count,
        f"{count} events in {topic}",
        seconds=seconds,
        alive=[service],
    )


# -- clips that are slow to decode -------------------------------------------------------------------------------


def slow_clip(path: Path, *, seconds: float) -> Path:
    """Write a video that takes one thread about ``seconds`` to decode, on this machine, just now."""
    some = 24
    few = write_endless_clip(path.with_stem(f"{path.stem}-few"), some)
    cost = min(_seconds_to_decode(few) for _ in range(3)) / some
    return write_endless_clip(path, round(seconds / cost))


def _seconds_to_decode(path: Path) -> float:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        began = time.thread_time()  # of the processor: on a busy machine the clock would promise too much
        assert sum(1 for _ in container.decode(stream))
        return time.thread_time() - began


# -- slow clips beside others ------------------------------------------------------------------------------------


def embed_beside(bus: Bus, embedder: Service, slow: Path, small: list[Path], *, wait: float) -> float:
    """Upload a slow clip and small ones beside it; return the seconds that the slow one took to load and decode.

    The small ones must be done while the slow one is not.
    """
    topic = bus.prefix + EMBEDDED
    names = [f"small-{index}" for index in range(24)]
    bus.publish(UPLOADED, [upload("slow", slow)])
    bus.publish(UPLOADED, [upload(name, small[index % len(small)]) for index, name in enumerate(names)])
    await_produced(embedder, topic, len(names), seconds=wait)

    def loads() -> float:
        return Metrics(embedder).total("streamer_stage_seconds_count", stage="load")

    wait_until(lambda: loads() >= len(names), "the small clips to be loaded", seconds=wait, alive=[embedder])
    early = Metrics(embedder)
    assert early.total("streamer_events_produced_total", topic=topic) == len(names), "the slow clip was not slow"
    await_produced(embedder, topic, 1 + len(names), seconds=wait)
    late = Metrics(embedder)
    assert sorted(record.event["clip_id"] for record in bus.read(EMBEDDED)) == sorted(["slow", *names])
    assert not bus.read(f"{UPLOADED}.dlq")
    took = [metrics.total("streamer_stage_seconds_sum", stage="load") for metrics in (early, late)]
    return took[1] - took[0]


def upload(clip_id: str, path: Path) -> Record:
    return Record.of(clip_id, {"clip_id": clip_id, "uri": path.as_uri(), "uploaded_at": datetime.now(UTC).isoformat()})


def check_never_evicted(embedder: Service) -> None:
    """Show that the partitions were assigned once and never taken away."""
    metrics = Metrics(embedder)
    kinds = {kind: metrics.total("streamer_rebalances_total", kind=kind) for kind in ("assigned", "revoked", "lost")}
    assert kinds == {"assigned": 1, "revoked": 0, "lost": 0}
    assert metrics.total("streamer_assigned_partitions") == 12
