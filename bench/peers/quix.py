"""The reranker with quixstreams, exactly once: `python bench/peers/quix.py localhost:9092 prefix. throughput FOLDER`.

``throughput`` commits once a second, ``latency`` after every event.
"""

from __future__ import annotations

from afternoon import GROUP, INPUT, OUTPUT, Reranker, arguments
from quixstreams import Application


def main() -> None:
    """Serve until SIGTERM."""
    options = arguments()
    backlog = options.mode == "throughput"
    app = Application(
        options.servers,
        consumer_group=options.prefix + GROUP,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=1.0,
        commit_every=0 if backlog else 1,
        producer_extra_config={"linger.ms": 5 if backlog else 0},
        auto_create_topics=False,
        use_changelog_topics=False,
        loglevel="WARNING",
    )
    rerank = Reranker(options.vectors)
    events = app.dataframe(app.topic(options.prefix + INPUT, value_deserializer="json"))
    events.apply(rerank).to_topic(app.topic(options.prefix + OUTPUT, value_serializer="json"))
    app.run()


if __name__ == "__main__":
    main()
