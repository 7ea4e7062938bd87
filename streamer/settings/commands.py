"""Which command takes which groups of settings: its flags, its variables and its part of a shared TOML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.settings.base import Group
from streamer.settings.clips import EmbeddingSettings, FetchSettings, IntakeSettings, SamplingSettings, SandboxSettings
from streamer.settings.groups import (
    Brokers,
    Connection,
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
from streamer.settings.observability import LogSettings, MetricsSettings, TargetSettings, TracingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping


class EmbedSettings(
    ServiceSettings,
    OutputSettings,
    ModelSettings,
    StoreWriteSettings,
    EmbeddingSettings,
    IntakeSettings,
    MetricsSettings,
    TracingSettings,
    LogSettings,
):
    """What ``streamer embed`` takes."""


class RerankSettings(
    ServiceSettings,
    OutputSettings,
    ModelSettings,
    StoreReadSettings,
    MethodSettings,
    MatchSettings,
    QuerySettings,
    MetricsSettings,
    TracingSettings,
    LogSettings,
):
    """What ``streamer rerank`` takes."""


class PilotSettings(Connection, ModelSettings, StoreSettings, MethodSettings, LogSettings):
    """What ``streamer pilot`` takes."""


class ReplaySettings(Connection, ModelSettings, StoreSettings, MethodSettings, MatchSettings, LogSettings):
    """What ``streamer replay`` takes."""


class MatchCommandSettings(ModelSettings, StoreSettings, MethodSettings, LogSettings):
    """What the commands of ``streamer match`` take."""


class SweepSettings(ModelSettings, StoreSettings, LogSettings):
    """What ``streamer sweep`` takes; alpha, depth and so on are options of its own, which take several values."""


class BenchmarkSettings(ModelSettings, EmbeddingSettings, SandboxSettings, MethodSettings, LogSettings):
    """What ``streamer benchmark`` takes."""


class ProbeSettings(ModelSettings, StoreSettings, EmbeddingSettings, SandboxSettings, LogSettings):
    """What ``streamer probe`` takes."""


class DemoSettings(Brokers, ModelSettings, EmbeddingSettings, SandboxSettings, MethodSettings, LogSettings):
    """What ``streamer demo`` takes; topics, store and ports are its own."""


class ExplainSettings(
    Connection, ModelSettings, StoreSettings, SamplingSettings, FetchSettings, MethodSettings, LogSettings
):
    """What ``streamer explain`` takes; the method applies where there is no answer that states one."""


class TopicsSettings(Connection, LogSettings):
    """What the commands take that look at topics alone: ``topics``, ``dlq`` and ``acls``."""


class AuditSettings(Connection, ModelSettings, SamplingSettings, SandboxSettings, LogSettings):
    """What ``streamer audit`` takes; the model only where clips are decoded anew."""


class ExposureSettings(Connection, MetricsSettings, LogSettings):
    """What ``streamer exposure`` takes."""


class TopSettings(Connection, TargetSettings, LogSettings):
    """What ``streamer top`` takes."""


class StoreCommandSettings(StoreWriteSettings, LogSettings):
    """What the commands of ``streamer store`` take."""


COMMANDS: Mapping[str, type[LogSettings]] = {
    "embed": EmbedSettings,
    "rerank": RerankSettings,
    "topics": TopicsSettings,
    "acls": TopicsSettings,
    "dlq": TopicsSettings,
    "audit": AuditSettings,
    "exposure": ExposureSettings,
    "explain": ExplainSettings,
    "demo": DemoSettings,
    "top": TopSettings,
    "store": StoreCommandSettings,
    "benchmark": BenchmarkSettings,
    "probe": ProbeSettings,
    "sweep": SweepSettings,
    "match": MatchCommandSettings,
    "pilot": PilotSettings,
    "replay": ReplaySettings,
}
"""Each command that takes settings, or the group of commands."""


class Settings(
    EmbedSettings,
    RerankSettings,
    PilotSettings,
    ReplaySettings,
    MatchCommandSettings,
    AuditSettings,
    ExplainSettings,
    ExposureSettings,
    BenchmarkSettings,
    ProbeSettings,
    SweepSettings,
    DemoSettings,
    TopSettings,
    TopicsSettings,
    StoreCommandSettings,
):
    """All settings of all commands: what a TOML file may hold, and what tools that play several commands take."""


def names_of(group: type[Group]) -> tuple[str, ...]:
    """Return the names of a group's settings in the order in which they are shown: those of its parts first."""
    found: dict[str, None] = {}

    def walk(kind: type) -> None:
        for base in kind.__bases__:
            if issubclass(base, Group):
                walk(base)
        found.update(dict.fromkeys(name for name in kind.__annotations__ if name in group.model_fields))

    walk(group)
    return tuple(found)
