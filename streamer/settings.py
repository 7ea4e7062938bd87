"""Every setting once: a flag of its commands, a ``STREAMER_*`` variable, a key of the TOML file.

Precedence is that order. :data:`COMMANDS_OF` says which command takes which setting; the command line
builds its flags from it. ``[kafka]`` in the TOML file, ``STREAMER_KAFKA__SECURITY_PROTOCOL`` or
``--kafka security.protocol=SSL`` pass any property through to librdkafka.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from streamer.events import MAX_RESULTS
from streamer.method import Method
from streamer.scoring import Normalization
from streamer.topology import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENV_PREFIX = "STREAMER_"
DEFAULT_MODEL = f"local-dir:{Path(__file__).parent / 'demo' / 'model'}"

Precision = Literal["float32", "float16", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line and names the setting."""


def blame(name: str, problem: object) -> SettingsError:
    """Make the error for setting ``name``, with each way in which it can be given."""
    return SettingsError(f"{name} (--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()}): {problem}")


class Settings(BaseSettings):
    """All settings of all commands; each command shows those that it uses."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        env_ignore_empty=True,
    )

    bootstrap_servers: str = Field(
        "localhost:9092", min_length=1, description="Kafka brokers, host:port, comma-separated"
    )
    topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Put before every topic, group and transactional id",
    )
    group_suffix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Put behind the name of the consumer group and the transactional id, so that two sets of services "
        "can share topics",
    )
    kafka: dict[str, str] = Field(
        default_factory=dict,
        repr=False,  # it may hold passwords
        description="Any librdkafka property (TLS, SASL, timeouts), as PROPERTY=VALUE",
    )
    instance_id: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
        description="Makes the transactional id stable: unique among running instances, the same after a restart",
    )
    model: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="open_clip model name, or local-dir:PATH (default: the small demo model)",
    )
    pretrained: str | None = Field(None, description="open_clip pretrained tag, or the path of a checkpoint file")
    dtype: Dtype = Field(
        "auto",
        description="Arithmetic of the model; auto takes the fastest that is accurate here; float32 is fixed",
    )
    device: Device = Field("auto", description="Where the model runs; auto takes CUDA where there is a device")
    threads: int | None = Field(
        None, ge=1, le=1024, description="Threads of the model's arithmetic on a CPU; OMP_NUM_THREADS, else measured"
    )
    store: str = Field(
        "lmdb:./data/store",
        pattern=r"^[a-z][a-z+]*:.+",
        repr=False,  # it may hold a password
        description="lmdb:PATH, redis://HOST:PORT, or redis+cluster://HOST:PORT,HOST:PORT (rediss: with TLS)",
    )
    store_user: str | None = Field(None, description="ACL user of a store beyond this host")
    store_password: SecretStr | None = Field(None, description="Its password; better a variable or a file than a flag")
    store_password_file: Path | None = Field(None, description="File that holds its password")
    store_ca: Path | None = Field(None, description="PEM file of the authorities that its certificates are checked by")
    store_cert: Path | None = Field(None, description="PEM file of our certificate, where its servers ask for one")
    store_key: Path | None = Field(None, description="PEM file of that certificate's key")
    store_timeout: float = Field(1.0, gt=0, le=60, description="Seconds that one of its servers has to answer")
    store_replicas: int = Field(
        0, ge=0, le=10, description="Replicas that must have a write before its event's offset is committed"
    )
    store_cache_bytes: int = Field(
        64 << 20, ge=0, description="Bytes of its records that are kept in this process and not transferred again"
    )
    store_tombstone_days: float = Field(
        30,
        ge=0,
        le=36_500,
        description="Days after which it forgets a delete, more than an upload can be late; 0: never",
    )
    precision: Precision = Field("float16", description="Of stored vectors")
    frame_interval: float = Field(0.5, gt=0, le=3600, description="Seconds between sampled frames")
    max_frames: int = Field(
        64, ge=1, le=10_000, description="Most frames of a clip; a longer clip is sampled at duration / max"
    )
    duplicate_threshold: float = Field(
        0,
        ge=0,
        le=255,
        description="Largest mean difference (0 to 255) of any block of 16 x 16 pixels between frames that count as "
        "the same and are encoded once; 0 is off",
    )
    allowed_uris: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=lambda: (Path.cwd().as_uri(),),
        description="JSON list of the URI prefixes that uploads may be fetched from",
    )
    max_clip_bytes: int = Field(1 << 30, ge=1, description="Largest file that is fetched, in bytes")
    fetch_timeout: float = Field(60.0, gt=0, description="Seconds for fetching one clip")
    first_byte_timeout: float = Field(
        15.0, gt=0, description="Seconds until a source answers, and for which it may fall silent afterwards"
    )
    allowed_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="JSON list of networks (CIDR) that http(s) sources may be in besides public addresses",
    )
    max_clip_seconds: float = Field(12 * 3600, gt=0, description="Longest clip, in seconds")
    max_clip_pixels: int = Field(8192 * 4352, ge=1, description="Most pixels of a frame")
    max_clip_packets: int = Field(2_000_000, ge=1, description="Most encoded frames of a clip")
    decode_workers: int = Field(
        2,
        ge=1,
        le=256,
        description="Clips decoded at the same time; 24 more may wait to be fetched, 8 of them from one source",
    )
    decode_timeout: float = Field(120.0, gt=0, description="Seconds for decoding one clip")
    decode_memory: int = Field(
        2 << 30, ge=256 << 20, description="Most bytes of address space that decoding a clip may take"
    )
    image_batch: int | None = Field(
        None, ge=1, le=4096, description="Most frames in one call of the image encoder; 32 on a CPU, else measured"
    )
    alpha: float = Field(0.4, ge=0, le=1, description="Weight of the engine's own score; 1 keeps the initial order")
    depth: int = Field(100, ge=1, le=MAX_RESULTS, description="How many of the first candidates are reranked")
    normalization: Normalization = Field("minmax", description="Of both scores before they are blended")
    deadline_ms: int | None = Field(
        None,
        ge=1,
        description="An event older than this when its turn comes is passed on in its initial order",
    )
    query_batch: int = Field(64, ge=1, le=10_000, description="Most query events in one micro-batch")
    query_cache: int = Field(20_000, ge=0, description="Query vectors kept in memory, least recently used out first")
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Most bytes of records in flight before partitions are paused"
    )
    retry_for: float = Field(120.0, ge=0, description="Seconds for which a transient fault of one clip is retried")
    drain_timeout: float = Field(8.0, gt=0, description="Seconds that a stop or a revocation waits for work in flight")
    stuck_after: float = Field(
        300.0,
        gt=0,
        description="Seconds after which /livez fails of a worker that does not end its call; of a consume loop that "
        "does not turn, 60 at most",
    )
    metrics_host: str = Field("0.0.0.0", description="Address of /metrics, /livez and /readyz")  # noqa: S104
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of /metrics, /livez and /readyz; 0 takes a free one"
    )
    metrics_user: str | None = Field(None, min_length=1, description="User that /metrics asks for; probes ask for none")
    metrics_password: SecretStr | None = Field(
        None, description="That user's password; better a variable or a file than a flag"
    )
    metrics_password_file: Path | None = Field(None, description="File that holds that password")
    metrics_cert: Path | None = Field(None, description="PEM file with the certificate (chain) for TLS on that port")
    metrics_key: Path | None = Field(None, description="PEM file with the certificate's key")
    tracing: Literal["off", "otlp"] = Field(
        "off", description="otlp sends a trace of each record by OTLP/HTTP to where OTEL_* variables say (extra otel)"
    )
    targets: Annotated[tuple[str, ...], NoDecode] = Field(
        tuple(f"http://localhost:{service.metrics_port}" for service in SERVICES.values()),
        min_length=1,
        repr=False,  # it may hold passwords
        description="URLs of the /metrics of the instances to watch, comma-separated; https://USER:PASSWORD@HOST:PORT "
        "where they are protected",
    )
    targets_ca: Path | None = Field(
        None, description="PEM file of the authorities that https targets are checked against; default: the system's"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal, else JSON lines"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is logged"
    )

    @field_validator("kafka", mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        """Accept ``security.protocol``, nested TOML tables and the underscores of variables alike."""
        if not isinstance(value, dict):
            return value
        flat: dict[str, str] = {}

        def walk(prefix: str, node: object) -> None:
            if isinstance(node, dict):
                for key, child in node.items():
                    walk(f"{prefix}.{key}" if prefix else str(key), child)
            else:
                flat[prefix.lower().replace("_", ".")] = str(node).lower() if isinstance(node, bool) else str(node)

        walk("", value)
        return flat

    @field_validator("allowed_uris", "allowed_networks", mode="before")
    @classmethod
    def _parse_list(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, list):  # a TypeError would not be reported as a wrong setting
            raise ValueError(f"must be a JSON list, such as {_LISTS_IN_JSON[str(info.field_name)]}")
        return parsed

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("["):  # as the other lists are written
            return orjson.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("allowed_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    def password(self, name: str) -> str | None:
        """Return the password that setting holds, or its file; :class:`SettingsError` where that cannot be read."""
        given: SecretStr | None = getattr(self, name)
        path: Path | None = getattr(self, f"{name}_file")
        if path is None:
            return given.get_secret_value() if given else None
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise blame(f"{name}_file", error) from None

    @property
    def method(self) -> Method:
        """The method that the settings describe."""
        return Method(alpha=self.alpha, depth=self.depth, normalization=self.normalization)

    def topic(self, name: str) -> str:
        """Return the full name of a topic."""
        return self.topic_prefix + name

    def group(self, name: str) -> str:
        """Return the full name of a consumer group or transactional id."""
        return self.topic_prefix + name + self.group_suffix


_KAFKA = ("bootstrap_servers", "topic_prefix", "group_suffix", "kafka")
_LOG = ("log_format", "log_level")
_STORE = (
    "store", "store_user", "store_password", "store_password_file", "store_ca", "store_cert", "store_key",
    "store_timeout",
)  # fmt: skip
_MODEL = ("model", "pretrained", "dtype", "device", "threads")
_TEXTS = (*_MODEL, *_STORE)
_SERVICE = (*_KAFKA, "instance_id", *_TEXTS)
_METHOD = ("alpha", "depth", "normalization")
_METRICS = (
    "metrics_host", "metrics_port", "metrics_user", "metrics_password", "metrics_password_file", "metrics_cert",
    "metrics_key",
)  # fmt: skip
_OPERATION = ("queue_bytes", "drain_timeout", "stuck_after", *_METRICS, "tracing", *_LOG)

COMMANDS_OF: dict[str, tuple[str, ...]] = {
    "embed": (
        *_SERVICE, "precision", "frame_interval", "max_frames", "duplicate_threshold", "allowed_uris",
        "allowed_networks", "max_clip_bytes", "fetch_timeout", "first_byte_timeout", "max_clip_seconds",
        "max_clip_pixels", "max_clip_packets", "decode_workers", "decode_timeout", "decode_memory", "image_batch",
        "retry_for", "store_replicas", "store_tombstone_days", *_OPERATION,
    ),
    "rerank": (
        *_SERVICE, *_METHOD, "deadline_ms", "query_batch", "query_cache", "store_cache_bytes", *_OPERATION,
    ),
    "topics": (*_KAFKA, *_LOG),
    "demo": ("bootstrap_servers", "kafka", *_MODEL, *_LOG),
    "top": (*_KAFKA, "targets", "targets_ca", *_LOG),
    "store": (*_STORE, "store_replicas", "store_tombstone_days", *_LOG),
    "benchmark": (*_MODEL, "precision", "frame_interval", "max_frames", *_METHOD, *_LOG),
    "sweep": (*_TEXTS, *_LOG),
    "pilot": (*_KAFKA, *_TEXTS, *_METHOD, *_LOG),
    "replay": (*_KAFKA, *_TEXTS, *_METHOD, *_LOG),
}  # fmt: skip
"""Which command takes which settings, in the order of its help."""


def load(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings:
    """Read the settings from flags (None means not given), the environment and the TOML file ``config``.

    Raises :class:`SettingsError` with one line that names the first setting that is wrong.
    """
    toml = _read_toml(config) if config else {}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, toml)

    try:
        return Loaded(**{name: value for name, value in (flags or {}).items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{name}: no such setting (in {config})") from None
        shown = "" if name in _SECRET else f"; got {str(first['input'])[:100]!r}"
        raise blame(name, first["msg"].removeprefix("Value error, ") + shown) from None
    except SourceError as error:
        raise SettingsError(" ".join(str(error).split())) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config {path}: not TOML: {error}") from None


def as_variables(settings: Settings) -> dict[str, str]:
    """Return the settings that were given, not those left at their defaults, as variables for another process."""
    variables = {}
    for name in settings.model_fields_set - {"kafka"}:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        text = orjson.dumps(value).decode() if isinstance(value, tuple) else "" if value is None else str(value)
        variables[ENV_PREFIX + name.upper()] = text
    for name, value in settings.kafka.items():
        variables[f"{ENV_PREFIX}KAFKA__{name.upper().replace('.', '_')}"] = value
    return variables


def unknown_variables(besides: Iterable[str] = ()) -> list[str]:
    """Return the ``STREAMER_*`` variables that are no setting: most likely misspelt."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {*besides}
    return sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX) and name not in known and not name.startswith(f"{ENV_PREFIX}KAFKA__")
    )


def markdown() -> str:
    """Return all settings as the table that the documentation shows."""
    lines = ["| variable | commands | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        commands = ", ".join(command for command, names in COMMANDS_OF.items() if name in names)
        default = _DEFAULTS_IN_WORDS.get(name, "" if field.default is None else str(field.default))
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{ENV_PREFIX}{name.upper()}` | {commands} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


_SECRET = frozenset({"kafka", "store", "store_password", "metrics_password", "targets"})
"""What is not shown, since it may hold a password."""

_LISTS_IN_JSON = {
    "allowed_uris": '["file:/clips", "https://cdn.example.com/"]',
    "allowed_networks": '["10.0.0.0/8", "fd00::/8"]',
}

_DEFAULTS_IN_WORDS = {
    "kafka": "",
    "instance_id": "the host's name",
    "model": "the small demo model",
    "allowed_uris": "the working directory",
    "allowed_networks": "none",
    "metrics_port": "9400 embed, 9401 rerank",
    "threads": "measured",
    "targets": "localhost at both default ports",
}
