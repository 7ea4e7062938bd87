"""What all groups of settings share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from streamer.settings.errors import invalid_setting

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_password(name: str, given: SecretStr | None, file: Path | None) -> str | None:
    """Return a password, from its file where there is one; :class:`SettingsError` if that cannot be read."""
    if file is None:
        return given.get_secret_value() if given else None
    return read_secret(f"{name}_file", file)


def read_secret(name: str, file: Path) -> str:
    """Return what a file holds, without blanks around it; :class:`SettingsError` for setting ``name`` if that fails."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise invalid_setting(name, error) from None
