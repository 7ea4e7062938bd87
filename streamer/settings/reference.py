"""What is said about settings: their table in the documentation, their defaults, the variables that name them."""

from __future__ import annotations

import os
import typing
from typing import TYPE_CHECKING

import orjson
from pydantic import SecretStr

from streamer.settings.commands import COMMANDS, Settings, names_of
from streamer.settings.errors import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamer.settings.base import Group

_DEFAULTS_IN_WORDS = {
    "kafka": "",
    "instance_id": "the host name",
    "model": "none",
    "allowed_uris": "none",
    "allowed_networks": "none",
    "store_address_map": "none",
    "metrics_port": "9400 embed, 9401 rerank, 9402 exposure",
    "threads": "OMP_NUM_THREADS, else chosen by a start-up benchmark",
    "image_batch": "32 on a CPU, else chosen by a start-up benchmark",
    "targets": "localhost at both default ports",
}


def described_default(name: str) -> str:
    """Return a setting's default in words; empty where there is none."""
    default = Settings.model_fields[name].default
    return _DEFAULTS_IN_WORDS.get(name, "" if default is None else str(default))


def is_secret(name: str) -> bool:
    """Say whether a setting may hold a password, and is therefore not shown."""
    field = Settings.model_fields[name]
    return not field.repr or SecretStr in typing.get_args(field.annotation)


def as_variables(settings: Group) -> dict[str, str]:
    """Return the settings that were given, not those left at their defaults, as variables for another process."""
    variables: dict[str, str] = {}
    for name in sorted(settings.model_fields_set):
        value = getattr(settings, name)
        if name == "kafka":
            variables |= {f"{ENV_PREFIX}KAFKA__{key.upper().replace('.', '_')}": each for key, each in value.items()}
            continue
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        text = orjson.dumps(value).decode() if isinstance(value, tuple) else "" if value is None else str(value)
        variables[ENV_PREFIX + name.upper()] = text
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
    for name in names_of(Settings):
        commands = ", ".join(command for command, group in COMMANDS.items() if name in group.model_fields)
        meaning = (Settings.model_fields[name].description or "").replace("|", "\\|")
        lines.append(f"| `{ENV_PREFIX}{name.upper()}` | {commands} | {described_default(name)} | {meaning} |")
    return "\n".join(lines) + "\n"
