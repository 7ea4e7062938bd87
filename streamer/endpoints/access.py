"""Who may read what of the endpoints, and their TLS files.

If a user and a password are set, /metrics requires them (basic authentication). The probes never do: a kubelet that
needs a password has it in every Pod's specification. Without the password, probes list only the names of failing
checks, no addresses and no errors.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.endpoints.exchange import Setup
from streamer.endpoints.requests import admits
from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.settings import MetricsSettings


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and TLS files of the endpoints; the default is open access over HTTP."""

    credentials: bytes | None = None
    """``user:password``."""
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, settings: MetricsSettings) -> Access:
        """Read the settings and the password file; SettingsError if they are inconsistent."""
        password = settings.read_metrics_password()
        if settings.metrics_user and not password:
            raise invalid_setting("metrics_password", "required, or its file, because metrics_user is set")
        if password and not settings.metrics_user:
            raise invalid_setting("metrics_user", "required, because a password is set")
        if settings.metrics_user and ":" in settings.metrics_user:
            raise invalid_setting("metrics_user", "must not contain a colon")
        if (settings.metrics_cert is None) != (settings.metrics_key is None):
            missing = "metrics_key" if settings.metrics_key is None else "metrics_cert"
            raise invalid_setting(missing, "required: TLS needs a certificate and its key")
        credentials = f"{settings.metrics_user}:{password}".encode() if password else None
        return cls(credentials, settings.metrics_cert, settings.metrics_key)

    def admits(self, authorization: str) -> bool:
        """Return whether an Authorization header is correct, in constant time."""
        return admits(self.credentials, authorization)

    def setup(self) -> Setup:
        """Return what the front is told; SettingsError if the certificate cannot be used."""
        if self.cert is None or self.key is None:
            return Setup(self.credentials)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise invalid_setting("metrics_cert", f"{self.cert} with {self.key}: {error}") from None
        return Setup(self.credentials, str(self.cert.absolute()), str(self.key.absolute()))
