"""Reads settings from flags, variables and the TOML file, in that order of precedence."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from streamer.settings.base import Group
from streamer.settings.commands import Settings
from streamer.settings.errors import ENV_PREFIX, SettingsError, invalid_setting
from streamer.settings.groups import flat_properties
from streamer.settings.reference import is_secret

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

G = TypeVar("G", bound=Group)


class _Environment(Settings, BaseSettings):
    """What pydantic needs to know in order to read the variables."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
    )


@overload
def load(flags: Mapping[str, Any] | None = None, config: Path | None = None) -> Settings: ...


@overload
def load(flags: Mapping[str, Any] | None = None, config: Path | None = None, *, command: type[G]) -> G: ...


def load(
    flags: Mapping[str, Any] | None = None, config: Path | None = None, *, command: type[Group] = Settings
) -> Group:
    """Read a command's settings from flags (None means not given), the environment and the TOML file ``config``.

    The file may hold settings of other commands, so that several can share it; they are not looked at, and neither
    are their variables. Raises :class:`SettingsError` with one line that names the first setting that is wrong.
    """
    toml = _read_toml(config) if config else {}
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    for source, where in ((toml, f" (in {config})"), (given, "")):
        for name in source:
            if name not in Settings.model_fields:
                raise SettingsError(f"{name}: no such setting{where}")
    try:
        layers = [toml, EnvSettingsSource(_Environment)(), given]
        return command.model_validate(_merged(layers, command.model_fields))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings, which the message names
            raise SettingsError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        shown = "" if is_secret(name) else f"; got {str(first['input'])[:100]!r}"
        raise invalid_setting(name, first["msg"].removeprefix("Value error, ") + shown) from None
    except SourceError as error:
        raise SettingsError(" ".join(str(error).split())) from None


def _merged(layers: list[dict[str, Any]], names: Mapping[str, object]) -> dict[str, Any]:
    """Let later layers win, setting by setting; librdkafka's properties are merged one by one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name in layer.keys() & names.keys():
            value = layer[name]
            if name == "kafka" and isinstance(value, dict) and isinstance(merged.get(name, {}), dict):
                value = {**merged.get(name, {}), **flat_properties(value)}
            merged[name] = value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config {path}: not TOML: {error}") from None
