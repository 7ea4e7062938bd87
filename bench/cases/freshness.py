"""Time until an upload is searchable: from ``uploaded_at`` until a read_committed consumer gets its clips.embedded.

    python -m bench.cases.freshness

``streamer embed`` with ViT-B-32 (with random weights, because speed does not depend on them) embeds a clip of 10 s,
720p, from a real Kafka. *Idle*: one clip at a time, each after the previous one is complete. The target is 1.3 times
the durations of stages ``load`` (fetching and decoding) and ``encode`` in the service's metrics, plus 50 ms. *Backlog*:
many clips at once. If n clips take T and were completed one after the other at T/n, 2T/n, ..., their mean latency would
be T (n + 1) / 2n. The excess over this is not explained by the throughput.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from bench.harness.clips import encode, real
from bench.harness.report import print_figures, spread
from bench.harness.workload import make_model
from streamer.local_kafka.broker import LocalKafka
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Service, apply_topics, environment
from tests.support.load import Metrics, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "freshness"

IDLE, BACKLOG = 12, 24
FACTOR, ALLOWED_S = 1.3, 0.05
_PATIENCE_S = 120.0


class Reader:
    """Reads committed records of clips.embedded as they arrive."""

    def __init__(self, bus: Bus) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bus.bootstrap_servers,
                "group.id": f"{bus.prefix}reader",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        topic = bus.prefix + EMBEDDED
        partitions = self._consumer.list_topics(topic, timeout=30).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in partitions])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def await_clips(self, clip_ids: set[str], service: Service) -> dict[str, float]:
        """Wait for the events of these clips; return the time of each by :func:`time.perf_counter`."""
        seen: dict[str, float] = {}
        deadline = time.perf_counter() + _PATIENCE_S
        while clip_ids - seen.keys():
            message = self._consumer.poll(1.0)
            if message is None:
                service.check_alive()
                if time.perf_counter() > deadline:
                    raise TimeoutError(f"{clip_ids - seen.keys()} are not embedded\n{service.tail()}")
            elif error := message.error():
                raise KafkaException(error)
            else:
                seen[json.loads(message.value() or b"")["clip_id"]] = time.perf_counter()
        return seen


@contextmanager
def embedding(folder: Path, clip: Path, model: dict[str, str]) -> Iterator[tuple[Bus, Service, Reader]]:
    """Run a broker and an embedder during the block."""
    with LocalKafka() as kafka:
        bus = Bus(kafka.bootstrap_servers, "freshness.")
        variables = environment(bus, folder / "store", [clip.parent], **model)
        apply_topics(variables, folder)
        with Service("embed", variables, folder) as service, Reader(bus) as reader:
            service.await_ready(seconds=150)
            yield bus, service, reader
            service.stop()


def stage_totals(service: Service) -> dict[str, float]:
    """Return the totals of the service's metrics that this benchmark uses."""
    metrics = Metrics(service)
    stages = ("load", "encode", "store")
    totals = {stage: metrics.total("streamer_stage_seconds_sum", stage=stage) for stage in stages}
    for name in ("sum", "count"):
        totals[f"batch_{name}"] = metrics.total(f"streamer_batch_size_{name}", stage="encode")
    totals["transaction"] = metrics.total("streamer_transaction_seconds_sum")
    return totals


def difference(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Return the increases between two readings."""
    return {name: other[name] - one[name] for name in one}


def measure(quick: bool) -> dict[str, Any]:
    """Return the figures; ``quick`` is a tiny size with the small model."""
    idle, backlog = (2, 4) if quick else (IDLE, BACKLOG)
    with tempfile.TemporaryDirectory(prefix="bench-freshness-") as name:
        folder = Path(name)
        clips = folder / "clips"
        clips.mkdir()
        film = ["-stream_loop", "-1", "-i", str(real()["bigbuckbunny"])]
        size, seconds = ("320x180", 2.0) if quick else ("1280x720", 10.0)
        clip = encode(clips / "clip.mp4", film, seconds=seconds, size=size)
        with embedding(folder, clip, {} if quick else make_model(folder)) as (bus, service, reader):
            singles = [_single(bus, service, reader, clip, f"idle-{n}") for n in range(-1, idle)][1:]
            before = stage_totals(service)
            began = time.perf_counter()
            names = {f"backlog-{n}" for n in range(backlog)}
            bus.publish(UPLOADED, [upload(each, clip) for each in sorted(names)])
            seen = reader.await_clips(names, service)
            during = difference(before, stage_totals(service))
    latencies = [each["latency"] for each in singles]
    allowed = [FACTOR * (each["load"] + each["encode"]) + ALLOWED_S for each in singles]
    waits = [at - began for at in seen.values()]
    explained = max(waits) * (backlog + 1) / (2 * backlog)
    return {
        "idle_latency_ms": spread([1000 * each for each in latencies]),
        "idle_latency_to_allowed_ratio": spread([a / b for a, b in zip(latencies, allowed, strict=True)]),
        **{
            f"idle_{stage}_ms": spread([1000 * each[stage] for each in singles])
            for stage in ("load", "encode", "store", "transaction")
        },
        "idle_rest_ms": spread([1000 * (each["latency"] - each["load"] - each["encode"]) for each in singles]),
        "idle_frames_a_batch": sum(each["batch_sum"] for each in singles) / sum(e["batch_count"] for e in singles),
        "backlog_clips": backlog,
        "backlog_clips_per_s": backlog / max(waits),
        "backlog_mean_latency_ms": 1000 * sum(waits) / len(waits),
        "backlog_mean_to_explained_ratio": sum(waits) / len(waits) / explained,
        "backlog_frames_a_batch": during["batch_sum"] / during["batch_count"],
    }


def _single(bus: Bus, service: Service, reader: Reader, clip: Path, clip_id: str) -> dict[str, float]:
    """Publish one upload and wait for its event; return its latency and the increases of the metrics, in seconds."""
    before = stage_totals(service)
    record = upload(clip_id, clip)  # its uploaded_at is now
    began = time.perf_counter()
    bus.publish(UPLOADED, [record])
    latency = reader.await_clips({clip_id}, service)[clip_id] - began
    time.sleep(0.1)  # the metrics of a transaction are counted after its end
    return {"latency": latency, **difference(before, stage_totals(service))}


def main() -> None:
    """Measure and print."""
    print_figures(measure(quick=False))


if __name__ == "__main__":
    main()
