"""The catalogue of all metrics: names, types, labels, units and help texts.

The values of each label are bounded, see :data:`LABELS`. ``docs/reference/metrics.md`` is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_LATENCY = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
            1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800)  # fmt: skip
_FRESHNESS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 7200, 86_400)
_WORK = (0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 3, 10, 30, 120)
_STORE = (0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Unit = Literal[
    "seconds", "bytes", "records", "events", "clips", "candidates", "frames", "partitions", "items", "count", "ratio"
]


@dataclass(frozen=True)
class Metric:
    """One metric; ``name`` as it is exposed, ``question`` is the question that it answers for an operator."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Unit
    labels: tuple[str, ...]
    help: str
    question: str
    buckets: tuple[float, ...] = ()


LABELS = {
    "group": "on every metric of a service: its consumer group under its full name",
    "topic": "the topics that the command reads or writes, under their full names",
    "partition": "the input topic's partitions that this instance owns",
    "reason": "dead letters: the `dlq.reason` codes; degraded events: the values of `degraded`; "
    "answers whose exposure is not counted: replayed, degraded, empty, other_group, invalid; "
    "log resets: beyond_end, moved, translated, foreign; outputs retimed: refused, retention; "
    "refused connections: crowded, slow, malformed",
    "status": "the values of a candidate's `status`",
    "stage": "embed: read, load, fetch, decode, encode, store, delete; rerank: rerank, text",
    "operation": "read, put, delete",
    "result": "hit, miss",
    "cause": "crashed, timeout",
    "lack": "disk, descriptors, processes, memory, sandbox",
    "mode": "seccomp+landlock, seccomp, landlock, none",
    "kind": "assigned, revoked, lost",
    "outcome": "committed, aborted, unknown, restarted, fenced",
    "condition": "start, broker, authentication, topic, assignment, offsets, store, delete, eviction, machine, "
    "transactions, unreadable, position",
    "attribute": "the attributes of clips that `streamer exposure` is told to count",
    "value": "of each attribute at most `--groups` values, (other) and (unknown)",
    "order": "candidates, engine, reranked",
    "version": "one value per process",
    "command": "embed, rerank",
    "model": "one value per process",
    "model_id": "one value per process",
    "dtype": "one value per process",
    "device": "one value per process",
}
"""Every label and its possible values: those listed, or as many as the cluster has."""

CATALOGUE = {
    "consumed": Metric(
        "streamer_events_consumed_total", "counter", "events", ("topic",),
        "Records read from an input topic.", "Do events arrive?",
    ),
    "produced": Metric(
        "streamer_events_produced_total", "counter", "events", ("topic",),
        "Records written in committed transactions, without dead letters.", "Are results written?",
    ),
    "dead_lettered": Metric(
        "streamer_events_dead_lettered_total", "counter", "events", ("topic", "reason"),
        "Records written to the dead-letter topic of their input topic.", "Which events cannot be processed, and why?",
    ),
    "retimed": Metric(
        "streamer_outputs_retimed_total", "counter", "events", ("topic", "reason"),
        "Outputs produced with the current time, since their topic refused the input record's or would soon delete it.",
        "Do event-time joins miss outputs?",
    ),
    "passed_over": Metric(
        "streamer_events_passed_over_total", "counter", "events", ("topic",),
        "Redriven records that are for another consumer group, and were completed without being processed.",
        "Was something redriven for another group?",
    ),
    "deleted": Metric(
        "streamer_clips_deleted_total", "counter", "clips", (),
        "Deletes (null values) applied to the store.", "Do deletes arrive?",
    ),
    "superseded": Metric(
        "streamer_uploads_superseded_total", "counter", "clips", (),
        "Uploads not stored because the store has a newer upload or a delete.", "Do uploads arrive out of order?",
    ),
    "candidates": Metric(
        "streamer_candidates_total", "counter", "candidates", ("status",),
        "Candidates of result lists by status.", "What share of the candidates is embedded?",
    ),
    "unreadable": Metric(
        "streamer_unreadable_partitions", "gauge", "partitions", (),
        "Assigned partitions that cannot be read: no valid offset, a damaged batch, or an error of their leader.",
        "Is there a partition that cannot be read?",
    ),
    "corrupt_records": Metric(
        "streamer_corrupt_records_total", "counter", "records", (),
        "Damaged records found while reading the store; their clips count as not embedded.",
        "Is the store's disk healthy?",
    ),
    "degraded": Metric(
        "streamer_events_degraded_total", "counter", "events", ("reason",),
        "Valid events that were passed on in the engine's order.", "How often do users see the engine's order?",
    ),
    "lag": Metric(
        "streamer_consumer_lag_records", "gauge", "records", ("topic", "partition"),
        "Log end offset minus committed offset, as kafka-consumer-groups.sh shows it.", "How many records are waiting?",
    ),
    "lag_seconds": Metric(
        "streamer_consumer_lag_seconds", "gauge", "seconds", ("topic", "partition"),
        "Age of the oldest record that is not completed and committed, by its timestamp; 0 when caught up.",
        "Does the service keep up with its input?",
    ),
    "completed_ahead": Metric(
        "streamer_consumer_completed_ahead_records", "gauge", "records", ("topic", "partition"),
        "Completed records beyond the committed offset (out-of-order commits); they are part of the lag in records.",
        "Does one slow record hold back the committed offset?",
    ),
    "unstable": Metric(
        "streamer_unstable_records", "gauge", "records", ("topic", "partition"),
        "Offsets from the last stable offset to the end of the log: they wait for an open transaction of a producer.",
        "Does a hung transaction of a producer keep records from being read?",
    ),
    "unstable_seconds": Metric(
        "streamer_unstable_seconds", "gauge", "seconds", ("topic", "partition"),
        "Seconds since the last stable offset stopped moving below the end of the log; 0 where nothing waits.",
        "How long has that transaction been open?",
    ),
    "log_resets": Metric(
        "streamer_log_resets_total", "counter", "count", ("topic", "reason"),
        "Times that a partition's log did not match what was committed or read; the reason says what happened.",
        "Was a log truncated, lost or mirrored, or were offsets set?",
    ),
    "topics_recreated": Metric(
        "streamer_topics_recreated_total", "counter", "count", ("topic",),
        "Times that a topic of the service was found deleted and created again; what it held is gone.",
        "Did somebody delete a topic?",
    ),
    "retention_lost": Metric(
        "streamer_retention_lost_offsets_total", "counter", "count", ("topic",),
        "Offsets that the broker deleted before they were read, because the lag exceeded the topic's retention.",
        "Did retention delete unprocessed events?",
    ),
    "commits_shortened": Metric(
        "streamer_commits_shortened_total", "counter", "count", (),
        "Commits without the list of completed records beyond the offset: offset.metadata.max.bytes is too small.",
        "Would a restart process records again?",
    ),
    "partitions": Metric(
        "streamer_topic_partitions", "gauge", "partitions", ("topic",),
        "Partitions of the input topic, with an owner or without.",
        "Minus the sum of assigned partitions: are there partitions without an owner?",
    ),
    "latency": Metric(
        "streamer_event_latency_seconds", "histogram", "seconds", ("topic",),
        "From issued_at (query.results) or uploaded_at (clips.uploaded) to the commit of the event's outputs.",
        "How long do users wait?", _LATENCY,
    ),
    "freshness": Metric(
        "streamer_clip_freshness_seconds", "histogram", "seconds", (),
        "From uploaded_at to the durable write that makes the clip's frames searchable.",
        "How fresh is search?", _FRESHNESS,
    ),
    "stage": Metric(
        "streamer_stage_seconds", "histogram", "seconds", ("stage",),
        "Processing time of one batch of a stage, without the time in its queue; load consists of fetch and decode, "
        "rerank includes text.", "Which stage takes the time?", _WORK,
    ),
    "queue_wait": Metric(
        "streamer_queue_wait_seconds", "histogram", "seconds", ("stage",),
        "Time that an item waited in a stage's queue.", "Which stage is the bottleneck?", _WORK,
    ),
    "batch": Metric(
        "streamer_batch_size", "histogram", "items", ("stage",),
        "Items in one batch of a stage: events, queries, frames or records.", "Are batches full?", _SIZES,
    ),
    "frames_decoded": Metric(
        "streamer_frames_decoded_total", "counter", "frames", (),
        "Frames decoded from video.", "How much decoding does sampling cost?",
    ),
    "partial": Metric(
        "streamer_clips_partial_total", "counter", "clips", (),
        "Damaged clips of which the intact part was embedded.", "Are uploads damaged?",
    ),
    "recoloured": Metric(
        "streamer_clips_recoloured_total", "counter", "clips", (),
        "Clips that state a colour matrix which cannot be applied, so that the usual one was assumed.",
        "Are colours of uploads tagged wrongly?",
    ),
    "decoder_failures": Metric(
        "streamer_decoder_failures_total", "counter", "count", ("cause",),
        "Decoder processes that crashed or exceeded their time limit.", "Do decoders crash or time out?",
    ),
    "decoder_sandbox": Metric(
        "streamer_decoder_sandbox", "gauge", "count", ("mode",),
        "1 for the mode that confines decoders: seccomp+landlock, seccomp, landlock or none.",
        "Are decoders sandboxed?",
    ),
    "machine_faults": Metric(
        "streamer_machine_faults_total", "counter", "count", ("lack",),
        "Attempts at an upload, a query or a client that failed as this machine is short of a resource.",
        "Is the machine too small, or full?",
    ),
    "frames_encoded": Metric(
        "streamer_frames_encoded_total", "counter", "frames", (),
        "Frames encoded by the image encoder.", "How much is embedded?",
    ),
    "frames_duplicate": Metric(
        "streamer_frames_duplicate_total", "counter", "frames", (),
        "Sampled frames that were not encoded because they nearly equal an earlier frame.",
        "How much encoding do duplicates save?",
    ),
    "store": Metric(
        "streamer_store_seconds", "histogram", "seconds", ("operation",),
        "Duration of a store call, failed ones included: read an event's candidates, write a batch, delete a clip.",
        "Is the store slow?", _STORE,
    ),
    "scoring": Metric(
        "streamer_scoring_seconds", "histogram", "seconds", (),
        "Time to score, blend and rank one event's candidates, without reading their records.",
        "Is scoring slow?", _STORE,
    ),
    "match": Metric(
        "streamer_match_ratio", "histogram", "ratio", (), "Match of a list's best candidate; only with STREAMER_MATCH.",
        "For how many queries does nothing match?", (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
    ),
    "store_errors": Metric(
        "streamer_store_errors_total", "counter", "count", ("operation",),
        "Store calls that failed because the store was unavailable.", "Is the store reachable?",
    ),
    "store_cache": Metric(
        "streamer_store_cache_total", "counter", "records", ("result",),
        "Records read from a remote store, by whether this process had them cached (hit) or not (miss).",
        "Is the record cache large enough?",
    ),
    "store_replica_reads": Metric(
        "streamer_store_replica_reads_total", "counter", "count", (),
        "Commands of queries that a replica of a remote store answered because its primary did not.",
        "Are primaries not answering?",
    ),
    "store_clips": Metric(
        "streamer_store_clips", "gauge", "clips", (),
        "Clips of this model in the store, without tombstones; counted once a minute.", "How much can be searched?",
    ),
    "store_bytes": Metric(
        "streamer_store_bytes", "gauge", "bytes", (), "Size of the store with all models; measured once a minute.",
        "When will the disk be full?",
    ),
    "store_evicted_keys": Metric(
        "streamer_store_evicted_keys_total", "counter", "count", (),
        "Keys that servers of a remote store were seen to evict, of this store or others.",
        "Does the store lose clips, or the tombstones of deleted ones?",
    ),
    "store_memory": Metric(
        "streamer_store_memory_ratio", "gauge", "ratio", (),
        "Share of its memory (maxmemory, or the machine's) that the fullest server of a remote store uses.",
        "When will the store accept no more uploads?",
    ),
    "store_replica_lag": Metric(
        "streamer_store_replica_lag_seconds", "gauge", "seconds", (),
        "For how long the slowest replica of a remote store has not been heard of by its primary, or the reverse.",
        "Would a failover lose writes?",
    ),
    "query_cache": Metric(
        "streamer_query_cache_total", "counter", "count", ("result",),
        "Lookups of query texts in the cache of query vectors: hit or miss.", "Is the query cache large enough?",
    ),
    "retries": Metric(
        "streamer_retries_total", "counter", "count", ("stage",),
        "Retries after a transient error.", "Which dependency is flaky?",
    ),
    "in_flight": Metric(
        "streamer_in_flight_records", "gauge", "records", (),
        "Records received and not yet committed.", "How much is in progress?",
    ),
    "in_flight_bytes": Metric(
        "streamer_in_flight_bytes", "gauge", "bytes", (),
        "Bytes of the records received and not yet committed.", "How close is the memory limit?",
    ),
    "assigned": Metric(
        "streamer_assigned_partitions", "gauge", "partitions", (),
        "Partitions that this instance owns.", "Is the work spread evenly?",
    ),
    "paused": Metric(
        "streamer_paused_partitions", "gauge", "partitions", (),
        "Owned partitions that are paused because the service is at its in-flight limit.", "Is the instance saturated?",
    ),
    "rebalances": Metric(
        "streamer_rebalances_total", "counter", "count", ("kind",),
        "Partition assignments, revocations and losses.", "Is the group stable?",
    ),
    "transactions": Metric(
        "streamer_transactions_total", "counter", "count", ("outcome",),
        "Transactions by outcome; unknown: the coordinator did not answer and the commit is retried; restarted: with a "
        "new producer; fenced: the process ends.", "Is Kafka healthy?",
    ),
    "transaction": Metric(
        "streamer_transaction_seconds", "histogram", "seconds", (),
        "From begin to commit of a committed transaction.", "What does exactly-once delivery cost?", _WORK,
    ),
    "transaction_size": Metric(
        "streamer_transaction_records", "histogram", "records", (),
        "Input records whose offsets one transaction commits.", "Are micro-batches full?", _SIZES,
    ),
    "build_info": Metric(
        "streamer_build_info", "gauge", "count", ("version", "command", "model_id"),
        "Always 1; the labels give the version and the model.", "Which version and model is running?",
    ),
    "model_info": Metric(
        "streamer_model_info", "gauge", "count", ("model", "model_id", "dtype", "device"),
        "Always 1; the labels give the model, its precision and its device.", "Which inference precision was chosen?",
    ),
    "ready": Metric("streamer_ready", "gauge", "count", (), "1 while /readyz reports ready.", "Is the instance ready?"),
    "unready": Metric(
        "streamer_unready", "gauge", "count", ("condition",),
        "1 while this condition is not met, else 0.", "Why is the instance not ready?",
    ),
    "connections_refused": Metric(
        "streamer_refused_connections_total", "counter", "count", ("reason",),
        "Connections to the port that were closed early: too many (crowded), too long (slow), unreadable (malformed).",
        "Is the metrics port being flooded?",
    ),
    "exposure_queries": Metric(
        "streamer_exposure_queries_total", "counter", "count", (),
        "Answered queries whose results are counted in streamer_exposure_total.",
        "How many queries do the shares rest on?",
    ),
    "exposure_left_out": Metric(
        "streamer_exposure_left_out_total", "counter", "count", ("reason",),
        "Answers whose results are not counted in streamer_exposure_total.", "How many answers are left out, and why?",
    ),
    "exposure": Metric(
        "streamer_exposure_total", "counter", "count", ("attribute", "value", "order"),
        "Sum over the queries of a group's share (0 to 1) of the candidates, and of users' attention in both orders.",
        "Which groups of clips do users see more of since reranking, and which less?",
    ),
}  # fmt: skip
"""Every metric under its attribute name in :class:`Metrics`."""


def markdown() -> str:
    """Return the catalogue as Markdown for the documentation: a table of metrics, then one of labels."""
    lines = ["| metric | type | unit | labels | meaning | question |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(m.labels)} | {m.help} | {m.question} |"
        for m in CATALOGUE.values()
    ]
    lines += ["", "| label | values |", "| --- | --- |", *(f"| {name} | {values} |" for name, values in LABELS.items())]
    return "\n".join(lines) + "\n"
