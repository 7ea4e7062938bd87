"""Options for remote stores, in addition to the URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamer.settings import StoreReadSettings, StoreWriteSettings, invalid_setting

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.settings import StoreSettings

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to connect to a remote store and what to require of it; an embedded store ignores all of it.

    ``user`` and ``password`` override those of the URL. ``ca``, ``cert`` and ``key`` are PEM files for TLS.
    ``timeout_s``: limit for each wait for a server. ``replicas``: number of replicas that must have a write before it
    counts as durable. ``cache_bytes``: size of this process's record cache; 0 disables it. ``tombstone_s``: lifetime of
    tombstones; 0 means for ever.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout_s: float = 1.0
    replicas: int = 0
    cache_bytes: int = 64 << 20
    tombstone_s: float = 30.0 * _DAY_S

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreOptions:
        """Read them from the settings, and the password from its file; SettingsError if the file does not exist.

        Options that the settings do not have keep their defaults: readers have no ``replicas``, writers no cache.
        """
        for name in ("store_ca", "store_cert", "store_key"):
            path = getattr(settings, name)
            if path is not None and not path.is_file():
                raise invalid_setting(name, f"{path}: no such file")
        more: dict[str, Any] = {}
        if isinstance(settings, StoreWriteSettings):
            more |= {"replicas": settings.store_replicas, "tombstone_s": settings.store_tombstone_days * _DAY_S}
        if isinstance(settings, StoreReadSettings):
            more |= {"cache_bytes": settings.store_cache_bytes}
        return cls(
            user=settings.store_user,
            password=settings.read_store_password(),
            ca=settings.store_ca,
            cert=settings.store_cert,
            key=settings.store_key,
            timeout_s=settings.store_timeout,
            **more,
        )
