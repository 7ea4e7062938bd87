"""The reranker with faststream: `python bench/peers/fast.py localhost:9092 prefix. latency FOLDER`.

faststream has no transaction for outputs and offsets: outputs are produced first and then offsets are committed, so a
crash in between produces outputs again (at least once). ``throughput`` handles up to 500 events at a time, ``latency``
one by one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from afternoon import GROUP, INPUT, OUTPUT, Reranker, arguments
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker, KafkaResponse


def main() -> None:
    """Serve until SIGTERM."""
    options = arguments()
    rerank = Reranker(options.vectors)
    backlog = options.mode == "throughput"
    broker = KafkaBroker(options.servers, linger_ms=5 if backlog else 0, logger=None)
    topic = options.prefix + OUTPUT

    def answer(event: dict[str, Any]) -> KafkaResponse:
        return KafkaResponse(rerank(event), key=event["query_id"].encode())

    subscriber = broker.subscriber(
        options.prefix + INPUT,
        group_id=options.prefix + GROUP,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        batch=backlog,
        max_records=500,
    )
    if backlog:

        @subscriber
        async def handle_batch(events: list[dict[str, Any]]) -> None:
            await broker.publish_batch(*map(answer, events), topic=topic)

    else:

        @subscriber
        @broker.publisher(topic)
        async def handle(event: dict[str, Any]) -> KafkaResponse:
            return answer(event)

    asyncio.run(FastStream(broker, logger=None).run())


if __name__ == "__main__":
    main()
