"""A hand-written transactional loop with orjson, numpy and confluent-kafka, without any of this project's code.

    python bench/harness/baseline.py localhost:9092 prefix. throughput

It consumes the same events as the reranker and produces results of the same size, exactly once, but reads no frames: it
measures the cost of transport alone. ``throughput`` commits up to 1,000 records per transaction with linger.ms=5.
``latency`` commits all records that are ready with linger.ms=0, and rotates four transactional producers: a producer's
next transaction is refused and retried until the markers of its previous one are written, whereas another producer can
begin immediately. Both sets of settings are the best that were found.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confluent_kafka import Message

GROUP = "streamer-rerank"
INPUT, OUTPUT = "query.results", "query.reranked"
_ALPHA = 0.4


@dataclass(frozen=True, slots=True)
class Mode:
    """How a loop commits."""

    records: int
    """Largest number of records in one transaction."""
    linger_ms: int
    producers: int


MODES = {"throughput": Mode(1_000, 5, 1), "latency": Mode(100, 0, 4)}


def answer(value: bytes) -> bytes:
    """Blend and rank one event as if each frame score were 0.25."""
    event = orjson.loads(value)
    results = event["results"]
    scores = np.array([each["score"] for each in results])
    low, high = scores.min(), scores.max()
    blended = _ALPHA * (scores - low) / (high - low) + (1 - _ALPHA) * 0.5
    order = np.argsort(-blended, kind="stable").tolist()
    values = blended.tolist()
    return orjson.dumps(
        {
            "query_id": event["query_id"],
            "query": event["query"],
            "engine": event["engine"],
            "issued_at": event["issued_at"],
            "reranked_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model_id": "clip512-0123456789abcdef",
            "alpha": _ALPHA,
            "depth": 100,
            "normalization": "minmax",
            "degraded": None,
            "results": [
                {
                    "clip_id": results[position]["clip_id"],
                    "rank": rank,
                    "score": values[position],
                    "initial_rank": position + 1,
                    "initial_score": results[position]["score"],
                    "frame_score": 0.25436789123456,
                    "moment_ms": 12_500,
                    "status": "reranked",
                }
                for rank, position in enumerate(order, start=1)
            ],
        }
    )


def run(servers: str, prefix: str, mode: Mode) -> None:
    """Serve until SIGTERM."""
    stopping: list[Any] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": prefix + GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([prefix + INPUT])
    producers = [
        Producer({"bootstrap.servers": servers, "transactional.id": f"{prefix}loop-{n}", "linger.ms": mode.linger_ms})
        for n in range(mode.producers)
    ]
    for producer in producers:
        producer.init_transactions(30)
    gc.freeze()
    for producer in itertools.cycle(producers):
        messages = _take(consumer, mode.records)
        while not messages and not stopping:
            messages = _take(consumer, mode.records)
        if stopping:
            break
        _transact(consumer, producer, messages, prefix)
    consumer.close()


def _take(consumer: Consumer, most: int) -> list[Message]:
    """Wait for one record and take all others that are ready; consume() alone would wait for ``most`` records."""
    first = consumer.poll(0.1)
    if first is None:
        return []
    messages = [first, *consumer.consume(most - 1, 0)]
    for message in messages:
        error = message.error()
        if error is not None:
            raise KafkaException(error)
    return messages


def _transact(consumer: Consumer, producer: Producer, messages: Sequence[Message], prefix: str) -> None:
    producer.begin_transaction()
    ends: dict[int, int] = {}
    for message in messages:
        value, partition, offset = message.value(), message.partition(), message.offset()
        assert value is not None
        assert partition is not None
        assert offset is not None
        producer.produce(prefix + OUTPUT, answer(value), message.key())
        ends[partition] = offset + 1
    offsets = [TopicPartition(prefix + INPUT, partition, end) for partition, end in ends.items()]
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
    producer.commit_transaction()


def main() -> None:
    """Run one loop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("servers")
    parser.add_argument("prefix")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--producers", type=int)
    parser.add_argument("--records", type=int)
    options = parser.parse_args()
    mode = MODES[options.mode]
    run(
        options.servers,
        options.prefix,
        Mode(options.records or mode.records, mode.linger_ms, options.producers or mode.producers),
    )


if __name__ == "__main__":
    main()
