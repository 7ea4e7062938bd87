"""What a remote store is used with; its URL says which store it is."""

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
    """How to reach a store and what to ask of it; an embedded store needs none of this.

    ``user`` and ``password`` come before those of the URL. ``ca``, ``cert`` and ``key`` are PEM files for TLS.
    ``timeout_s`` bounds each wait for a server. ``replicas`` must have a write before it counts as durable.
    ``cache_bytes`` of records are kept in this process; 0 keeps none. A tombstone lives for ``tombstone_s``; 0
    is for ever.
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
        """Read them from the settings, and the password from its file; SettingsError where that is not there.

        What the settings do not hold is left at its default: a reader has no replicas to wait for, a writer no cache.
        """
        for name in ("store_ca", "store_cert", "store_key"):
            path = getattr(settings, name)
            if path is not None and not path.is_file():
                raise invalid_setting(name, f"{path}: there is no such file")
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
