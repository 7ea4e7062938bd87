"""Every setting once, in groups: a function takes the group that it needs, a command is composed of several.

A group is a pydantic model with its own checks. Field names are flat over all groups, since a field's name is its
flag, its variable and its key in the TOML file.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from streamer.events import MAX_RESULTS
from streamer.match import Bank, BankError, read_bank
from streamer.method import Method
from streamer.pooling import MAX, parse
from streamer.scoring import IMPUTE, Missing, Normalization
from streamer.settings.base import Group, read_password, read_secret
from streamer.settings.errors import SettingsError, invalid_setting
from streamer.topology import DLQ_SUFFIX, SERVICES, dead_letter_topic

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


# -- Kafka ---------------------------------------------------------------------------------------------------


class Brokers(Group):
    """How to reach Kafka."""

    bootstrap_servers: str = Field(
        "localhost:9092", min_length=1, description="Kafka brokers as host:port, comma-separated"
    )
    kafka: dict[str, str] = Field(
        default_factory=dict,
        repr=False,  # it may hold passwords
        description="Any librdkafka property (TLS, SASL, timeouts) as PROPERTY=VALUE; may be given several times. A "
        "secret, such as sasl.password, can be given as sasl.password.file=PATH",
    )

    @field_validator("kafka", mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        return flat_properties(value) if isinstance(value, dict) else value

    def read_kafka(self) -> dict[str, str]:
        """Return librdkafka's properties, secrets read from their files; :class:`SettingsError` if one cannot be."""
        files = {name: self.kafka[f"{name}.file"] for name in KAFKA_SECRETS if f"{name}.file" in self.kafka}
        others = {name: value for name, value in self.kafka.items() if name.removesuffix(".file") not in files}
        return others | {name: _read_property(name, Path(path)) for name, path in files.items()}


KAFKA_SECRETS = (
    "sasl.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
)
"""Properties of librdkafka that are secrets, which it reads from no file by itself."""


def _read_property(name: str, path: Path) -> str:
    try:
        return read_secret("kafka", path)
    except SettingsError as error:
        raise SettingsError(f"{error} ({name}.file)") from None


def flat_properties(value: dict[str, object]) -> dict[str, str]:
    """Return librdkafka properties by their own names, from ``security.protocol``, nested tables and underscores."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: object) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix.lower().replace("_", ".")] = str(node).lower() if isinstance(node, bool) else str(node)

    walk("", value)
    return flat


TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None


def _own_topic(of: str) -> Any:
    return Field(None, description=f"Full name of the {of}; the topic prefix is not put before it")


class Connection(Brokers):
    """How to reach Kafka, and what our topics and consumer groups are called there."""

    topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Put before the name of every topic, consumer group and transactional id",
    )
    group_suffix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Appended to the names of consumer groups and transactional ids, so that two sets of services can "
        "share topics; commands that read answers or dead letters then read those of this set alone",
    )

    topic_clips_uploaded: TopicName = _own_topic("topic of uploads, instead of clips.uploaded")
    topic_clips_embedded: TopicName = _own_topic("topic of embedded clips, instead of clips.embedded")
    topic_query_results: TopicName = _own_topic("topic of query results, instead of query.results")
    topic_query_reranked: TopicName = _own_topic("topic of reranked results, instead of query.reranked")
    topic_clips_uploaded_dlq: TopicName = _own_topic(
        "dead-letter topic of uploads, instead of the name of their topic and .dlq"
    )
    topic_query_results_dlq: TopicName = _own_topic(
        "dead-letter topic of query results, instead of the name of their topic and .dlq"
    )
    group_embed: TopicName = Field(
        None,
        description="Consumer group of embed, instead of streamer-embed; the group suffix is appended, the topic "
        "prefix is not put before it",
    )
    group_rerank: TopicName = Field(
        None,
        description="Consumer group of rerank, instead of streamer-rerank; the group suffix is appended, the topic "
        "prefix is not put before it",
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [self.topic(name) for service in SERVICES.values() for name in service.topics]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"topic_*: {twice} is the name of two topics: what is written would be read again")
        groups = [self.group(service.group) for service in SERVICES.values()]
        if len(set(groups)) != len(groups):
            raise ValueError(f"group_embed, group_rerank: both services would be in the group {groups[0]}")
        return self

    def topic(self, name: str) -> str:
        """Return the full name of a topic: the one that a setting gives it, or the prefix and ``name``."""
        own: str | None = getattr(self, f"topic_{name.replace('.', '_')}", None)
        if own is not None:
            return own
        if name.endswith(DLQ_SUFFIX):
            return dead_letter_topic(self.topic(name.removesuffix(DLQ_SUFFIX)))
        return self.topic_prefix + name

    def group(self, name: str) -> str:
        """Return the full name of a consumer group or transactional id."""
        role = next((service.role for service in SERVICES.values() if service.group == name), None)
        own: str | None = getattr(self, f"group_{role}", None) if role else None
        return (own if own is not None else self.topic_prefix + name) + self.group_suffix

    def chosen_group(self, name: str) -> str | None:
        """Return the full name of a service's consumer group where a setting says which one is meant, else None."""
        role = next(service.role for service in SERVICES.values() if service.group == name)
        is_chosen = not self.model_fields_set.isdisjoint({"group_suffix", f"group_{role}"})
        return self.group(name) if is_chosen else None


class ServiceSettings(Connection):
    """One running instance of a service: a member of its consumer group, with bounded memory and bounded waits."""

    instance_id: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="Makes the transactional id stable: unique among running instances, the same after a restart",
    )
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes of records in flight at which the partitions are paused"
    )
    max_batch_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        le=680 << 20,
        description="Decompressed size up to which a batch of records can always be read; a batch that the Kafka "
        "client cannot decode even so becomes one dead letter that names its offsets",
    )
    drain_timeout: float = Field(
        8.0, gt=0, description="Seconds that a stop or a revocation waits for records in flight"
    )
    worker_stall_timeout: float = Field(
        300.0,
        gt=0,
        description="Fail /livez if a worker is busy with one call for this many seconds (consume loop: at most 60)",
    )


class OutputSettings(Group):
    """How the outputs are marked."""

    output_timestamps: Literal["input", "now"] = Field(
        "input",
        description="Timestamp of output records; input: that of the input record, so that event-time joins and "
        "replays match; now: the time at which they are produced",
    )
    cloudevents: Literal["auto", "on", "off"] = Field(
        "auto",
        description="CloudEvents attributes on outputs; auto: if the input record is a CloudEvent",
    )
    cloudevents_source: str | None = Field(
        None,
        pattern=r"^[!-~]{1,1000}$",
        description="ce_source of outputs, a URI reference; by default / and the consumer group's name",
    )


# -- the model and the method --------------------------------------------------------------------------------


class ModelSettings(Group):
    """Which model turns frames and queries into vectors, and how it is computed."""

    model: str | None = Field(
        None,
        description="Model: a name of open_clip (with --pretrained), local-dir:PATH, hf-hub:REPOSITORY@COMMIT, or "
        "demo, the small demonstration model",
    )
    pretrained: str | None = Field(
        None, description="Weights of the model: a pretrained tag of open_clip, or the path of a checkpoint file"
    )
    dtype: Dtype = Field(
        "auto",
        description="Inference precision; auto: the fastest one whose vectors keep a cosine of 0.9998 to those of "
        "float32",
    )
    device: Device = Field("auto", description="Where inference runs; auto: on CUDA if there is a device")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads for inference")

    def named_model(self) -> str:
        """Return the model; :class:`SettingsError` where none is named, since no model is right for everybody."""
        if not self.model:
            raise invalid_setting(
                "model",
                "name one, for example --model ViT-B-32 --pretrained laion2b_s34b_b79k (a name and a tag of "
                "open_clip), or --model demo (the small demonstration model)",
            )
        return self.model


class MethodSettings(Group):
    """How a query's candidates are reranked."""

    alpha: float = Field(0.4, ge=0, le=1, description="Weight of the engine's score: 1 = engine only, 0 = CLIP only")
    depth: int = Field(100, ge=1, le=MAX_RESULTS, description="How many of the first candidates are reranked")
    normalization: Normalization = Field(
        "minmax", description="Normalization of the engine's and the frames' scores before they are blended"
    )
    missing: Missing = Field(
        IMPUTE,
        description="Frame score of a candidate without a record; impute: predicted from its own score by regression "
        "within the list; own: none, it keeps its own score alone",
    )
    pooling: str = Field(
        MAX,
        description="How a clip's frames make its frame score: max, or softmax:TAU, a mean weighted by "
        "exp(cosine / TAU), TAU from 0.01 to 1",
    )

    @field_validator("pooling")
    @classmethod
    def _spell(cls, value: str) -> str:
        return parse(value)

    @property
    def method(self) -> Method:
        """The method that the settings describe."""
        return Method(
            alpha=self.alpha,
            depth=self.depth,
            normalization=self.normalization,
            missing=self.missing,
            pooling=self.pooling,
        )


class MatchSettings(Group):
    """Whether answers say how well their best candidate matches."""

    match: Path | None = Field(
        None,
        description="File of streamer match fit, by which each answer says how well its best candidate matches; it is "
        "read at the start",
    )

    def read_match(self, model_id: str, dim: int) -> Bank | None:
        """Return the bank, None if no file is named; :class:`SettingsError` if it is none of the model.

        ``model_id``, ``dim``: the model's id, and the length of its vectors.
        """
        try:
            return None if self.match is None else read_bank(self.match, model_id, dim)
        except BankError as error:
            raise invalid_setting("match", error) from None


class QuerySettings(Group):
    """How the reranker works through query events."""

    deadline_ms: int | None = Field(
        None, ge=1, description="Skip reranking for queries older than this many milliseconds: they keep their order"
    )
    query_batch: int = Field(64, ge=1, le=10_000, description="Largest number of query events in one micro-batch")
    query_cache: int = Field(
        20_000, ge=0, description="Number of query vectors kept in memory; the least recently used are evicted"
    )


# -- the store -----------------------------------------------------------------------------------------------


class StoreSettings(Group):
    """Where records are kept, and how to reach a remote store."""

    store: str = Field(
        "lmdb:./data/store",
        pattern=r"^[a-z][a-z+]*:.+",
        repr=False,  # it may hold a password
        description="Store of the embeddings: lmdb:PATH, redis://HOST:PORT, redis+cluster://HOST:PORT,HOST:PORT or "
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE (rediss: with TLS)",
    )
    store_user: str | None = Field(None, description="ACL user of a remote store")
    store_password: SecretStr | None = Field(
        None, description="Password of a remote store; prefer the variable or a file to the flag"
    )
    store_password_file: Path | None = Field(
        None, description="File that holds the password of a remote store; it is read for each connection"
    )
    store_ca: Path | None = Field(
        None,
        description="PEM file with the certificate authorities that a remote store is checked against",
    )
    store_cert: Path | None = Field(None, description="PEM file with the client certificate for a remote store")
    store_key: Path | None = Field(None, description="PEM file with the key of the client certificate")
    store_timeout: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Seconds within which all reads of an event from a remote store must end, connecting included; for "
        "a write, the seconds of each of its steps",
    )
    store_address_map: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="JSON list of ANNOUNCED=REACHABLE addresses (HOST:PORT), for servers of a remote store behind "
        "address translation",
    )

    @field_validator("store_address_map", mode="before")
    @classmethod
    def _parse_address_map(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, list):  # a TypeError would not be reported as a wrong setting
            raise ValueError('must be a JSON list, such as ["10.0.0.5:6379=203.0.113.7:7001"]')
        return parsed

    @field_validator("store_address_map")
    @classmethod
    def _check_address_map(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if not re.fullmatch(r"[^=]+:[0-9]{1,5}=[^=]+:[0-9]{1,5}", each):
                raise ValueError(f"{each!r} is not of the form HOST:PORT=HOST:PORT")
        return value

    def read_store_password(self) -> str | None:
        """Return the password, from its file where there is one; :class:`SettingsError` if that cannot be read."""
        return read_password("store_password", self.store_password, self.store_password_file)


class StoreWriteSettings(StoreSettings):
    """A store that is written."""

    store_replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="Replicas of a remote store that must acknowledge a write before the event's offset is committed",
    )
    store_tombstone_days: float = Field(
        30,
        ge=0,
        le=36_500,
        description="Days for which a remote store keeps a tombstone, longer than an upload can be late; 0: for ever",
    )


class StoreReadSettings(StoreSettings):
    """A store that is read again and again."""

    store_cache_bytes: int = Field(
        64 << 20, ge=0, description="Bytes of records of a remote store that are cached in this process; 0: no cache"
    )
    store_staleness: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Seconds by which a replica's data may be old that is read while its primary does not answer; 0: "
        "replicas are not read",
    )
    least_scored: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of a query's candidates within the depth that the store must be able to look up; with fewer "
        "the query keeps its order",
    )
