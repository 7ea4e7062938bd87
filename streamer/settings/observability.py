"""The groups of settings for metrics, probes, traces, logs, and the instances that are watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from streamer.settings.base import Group, read_password, read_secret
from streamer.settings.errors import invalid_setting
from streamer.topology import SERVICES


class MetricsSettings(Group):
    """The HTTP endpoint with metrics and probes."""

    metrics_host: str = Field("0.0.0.0", description="Address of /metrics, /livez and /readyz")  # noqa: S104
    metrics_port: int | None = Field(
        None, ge=0, le=65_535, description="Port of /metrics, /livez and /readyz; 0: any free port"
    )
    metrics_user: str | None = Field(
        None, min_length=1, description="User name that /metrics asks for; the probes ask for none"
    )
    metrics_password: SecretStr | None = Field(
        None, description="Password that /metrics asks for; prefer the variable or a file to the flag"
    )
    metrics_password_file: Path | None = Field(None, description="File that holds the password that /metrics asks for")
    metrics_cert: Path | None = Field(None, description="PEM file with the certificate (chain) for TLS on that port")
    metrics_key: Path | None = Field(None, description="PEM file with the key of that certificate")

    def read_metrics_password(self) -> str | None:
        """Return the password, from its file where there is one; :class:`SettingsError` if that cannot be read."""
        return read_password("metrics_password", self.metrics_password, self.metrics_password_file)


class TracingSettings(Group):
    """Traces of single records."""

    tracing: Literal["off", "otlp"] = Field(
        "off",
        description="otlp: send a trace of each record by OTLP/HTTP to the collector that the OTEL_* variables name "
        "(needs the extra otel)",
    )
    tracing_headers_file: Path | None = Field(
        None,
        description="File with the collector's headers, such as its key, in the format of OTEL_EXPORTER_OTLP_HEADERS",
    )

    def read_tracing_headers(self) -> str | None:
        """Return the headers if they are in a file; :class:`SettingsError` if that cannot be read."""
        if self.tracing_headers_file is None:
            return None
        return read_secret("tracing_headers_file", self.tracing_headers_file)


class TargetSettings(Group):
    """The instances that are watched."""

    targets: Annotated[tuple[str, ...], NoDecode] = Field(
        tuple(f"http://localhost:{service.metrics_port}" for service in SERVICES.values()),
        min_length=1,
        repr=False,  # it may hold passwords
        description="URLs of the /metrics of the instances to watch, comma-separated; https://USER:PASSWORD@HOST:PORT "
        "where they are protected",
    )
    targets_file: Path | None = Field(
        None, description="File with these URLs instead, one per line, since they may contain passwords"
    )
    targets_ca: Path | None = Field(
        None,
        description="PEM file with the certificate authorities that https targets are checked against, instead of the "
        "system's",
    )

    def read_targets(self) -> tuple[str, ...]:
        """Return the URLs, from their file where there is one; :class:`SettingsError` if that cannot be read."""
        if self.targets_file is None:
            return self.targets
        urls = tuple(read_secret("targets_file", self.targets_file).split())
        if not urls:
            raise invalid_setting("targets_file", f"{self.targets_file} holds no URL")
        return urls

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("["):  # as the other lists are written
            return orjson.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]


class LogSettings(Group):
    """What is logged, and how it looks."""

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of log lines; auto: console on a terminal, else JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged"
    )
