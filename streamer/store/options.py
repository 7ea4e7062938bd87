"""Options for remote stores, in addition to the URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamer.settings import StoreReadSettings, StoreWriteSettings, invalid_setting, read_secret

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamer.settings import StoreSettings

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to connect to a remote store and what to require of it; an embedded store ignores all of it.

    ``user`` and the password override those of the URL; a password in a file is read for each connection. ``ca``,
    ``cert`` and ``key`` are PEM files for TLS. ``address_map``: announced addresses of servers, as HOST:PORT, and those
    that lead there. ``timeout_s``: limit for all reads of an event together, and for each step of a write.
    ``staleness_s``: how old the data of a replica may be that is read instead of its primary. ``replicas``: number of
    replicas that must have a write before it counts as durable. ``cache_bytes``: size of this process's record cache; 0
    disables it. ``tombstone_s``: lifetime of tombstones; 0 means for ever.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    address_map: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 1.0
    staleness_s: float = 60.0
    replicas: int = 0
    cache_bytes: int = 64 << 20
    tombstone_s: float = 30.0 * _DAY_S

    @property
    def has_password(self) -> bool:
        """Whether there is a password, or a file for one."""
        return self.password is not None or self.password_file is not None

    def read_password(self) -> str | None:
        """Return the password, from its file where there is one; :class:`SettingsError` if that cannot be read."""
        return self.password if self.password_file is None else read_secret("store_password_file", self.password_file)

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreOptions:
        """Read them from the settings; SettingsError if a file does not exist.

        Options that the settings do not have keep their defaults: readers have no ``replicas``, writers no cache.
        """
        for name in ("store_ca", "store_cert", "store_key"):
            path = getattr(settings, name)
            if path is not None and not path.is_file():
                raise invalid_setting(name, f"{path}: no such file")
        file = settings.store_password_file
        if file is not None:
            settings.read_store_password()  # it must be there at the start
        more: dict[str, Any] = {}
        if isinstance(settings, StoreWriteSettings):
            more |= {"replicas": settings.store_replicas, "tombstone_s": settings.store_tombstone_days * _DAY_S}
        if isinstance(settings, StoreReadSettings):
            more |= {"cache_bytes": settings.store_cache_bytes, "staleness_s": settings.store_staleness}
        return cls(
            user=settings.store_user,
            password=None if file else settings.read_store_password(),
            password_file=file,
            ca=settings.store_ca,
            cert=settings.store_cert,
            key=settings.store_key,
            address_map=dict(each.split("=") for each in settings.store_address_map),
            timeout_s=settings.store_timeout,
            **more,
        )
