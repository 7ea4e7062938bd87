"""Settings: each is a flag of its commands, a ``STREAMER_*`` variable and a key of the TOML file.

Precedence is that order. Each setting is described once, in the group that it belongs to
(:mod:`~streamer.settings.groups`, :mod:`~streamer.settings.clips`, :mod:`~streamer.settings.observability`);
:mod:`~streamer.settings.commands` says which groups each command takes; the command line builds its flags from both.
``[kafka]`` in the TOML file, ``STREAMER_KAFKA__SECURITY_PROTOCOL`` or ``--kafka security.protocol=SSL`` pass any
property through to librdkafka.
"""

from __future__ import annotations

from streamer.settings.base import Group, read_secret
from streamer.settings.clips import (
    EmbeddingSettings,
    FetchSettings,
    IntakeSettings,
    Precision,
    SamplingSettings,
    Sandbox,
    SandboxSettings,
)
from streamer.settings.commands import (
    COMMANDS,
    AuditSettings,
    BenchmarkSettings,
    DemoSettings,
    EmbedSettings,
    ExplainSettings,
    ExposureSettings,
    MatchCommandSettings,
    PilotSettings,
    ProbeSettings,
    ReplaySettings,
    RerankSettings,
    Settings,
    StoreCommandSettings,
    SweepSettings,
    TopicsSettings,
    TopSettings,
    names_of,
)
from streamer.settings.errors import ENV_PREFIX, SettingsError, invalid_setting
from streamer.settings.groups import (
    Brokers,
    Connection,
    Device,
    Dtype,
    MatchSettings,
    MethodSettings,
    ModelSettings,
    OutputSettings,
    QuerySettings,
    ServiceSettings,
    StoreReadSettings,
    StoreSettings,
    StoreWriteSettings,
)
from streamer.settings.loading import load
from streamer.settings.observability import LogSettings, MetricsSettings, TargetSettings, TracingSettings
from streamer.settings.reference import as_variables, described_default, markdown, unknown_variables

__all__ = [
    "COMMANDS",
    "ENV_PREFIX",
    "AuditSettings",
    "BenchmarkSettings",
    "Brokers",
    "Connection",
    "DemoSettings",
    "Device",
    "Dtype",
    "EmbedSettings",
    "EmbeddingSettings",
    "ExplainSettings",
    "ExposureSettings",
    "FetchSettings",
    "Group",
    "IntakeSettings",
    "LogSettings",
    "MatchCommandSettings",
    "MatchSettings",
    "MethodSettings",
    "MetricsSettings",
    "ModelSettings",
    "OutputSettings",
    "PilotSettings",
    "Precision",
    "ProbeSettings",
    "QuerySettings",
    "ReplaySettings",
    "RerankSettings",
    "SamplingSettings",
    "Sandbox",
    "SandboxSettings",
    "ServiceSettings",
    "Settings",
    "SettingsError",
    "StoreCommandSettings",
    "StoreReadSettings",
    "StoreSettings",
    "StoreWriteSettings",
    "SweepSettings",
    "TargetSettings",
    "TopSettings",
    "TopicsSettings",
    "TracingSettings",
    "as_variables",
    "described_default",
    "invalid_setting",
    "load",
    "markdown",
    "names_of",
    "read_secret",
    "unknown_variables",
]
