"""The error for a setting that cannot be used."""

from __future__ import annotations

ENV_PREFIX = "STREAMER_"


class SettingsError(Exception):
    """A setting that cannot be used; the message is one line and names the setting."""


def invalid_setting(name: str, problem: object) -> SettingsError:
    """Make the error for setting ``name``, with each way in which it can be given."""
    return SettingsError(f"{name} (--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()}): {problem}")
