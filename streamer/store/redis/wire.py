"""Connections to servers: redis-py's own, whose replies are taken as they arrive.

redis-py connects, encrypts, authenticates and parses. But it waits for one reply at a time, and the limit of a wait
begins anew with each piece that is received. Here a reply is taken only as far as it has arrived, so that one caller
can wait for several nodes at once and until one deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from streamer.settings import SettingsError
from streamer.store.redis.answers import is_answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address

INCOMPLETE: Final = object()
"""A reply of which something is still missing."""
_READ_BYTES = 1 << 18
"""The size of a socket read: a node's share of a query is some hundred kilobytes."""


class _Arriving:
    """Adds to a connection of redis-py what waits for several of them need."""

    _sock: Any
    connect: Callable[[], None]
    disconnect: Callable[[], None]
    send_command: Callable[..., None]
    send_packed_command: Callable[..., None]
    read_response: Callable[..., Any]
    epoch: int
    """The node's epoch when the connection was made; the node sets it."""

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return int(self._sock.fileno())

    def send_within(self, data: bytes, seconds: float) -> None:
        """Send all of ``data`` within so many seconds."""
        self._sock.settimeout(max(seconds, 0.001))
        self.send_packed_command([data], check_health=False)

    def arrived(self) -> Any:
        """Return the next reply, :data:`INCOMPLETE` if it is not all there; an error of the server is a reply, too."""
        try:
            return self.read_response(disable_decoding=True, timeout=0, disconnect_on_error=False)
        except RedisTimeoutError:
            return INCOMPLETE
        except RedisError as error:
            if is_answer(error):
                return error
            raise


class Wire(_Arriving, Connection):
    """A connection over TCP."""


class TlsWire(_Arriving, SSLConnection):
    """A connection over TLS."""


class Credentials(CredentialProvider):
    """User and password; a password in a file is read whenever a connection is made, so that it can be rotated."""

    def __init__(self, user: str | None, password: Callable[[], str | None]) -> None:
        self._user = user
        self._password = password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return them as redis-py takes them."""
        try:
            password = self._password() or ""
        except SettingsError as error:
            raise RedisConnectionError(str(error)) from None
        return (self._user, password) if self._user else (password,)


def connection_options(address: Address, options: StoreOptions) -> dict[str, Any]:
    """Return redis-py's arguments for a connection to any of a store's servers, without host, port and database."""
    user = options.user or address.user
    common: dict[str, Any] = {
        "socket_timeout": options.timeout_s,
        "socket_connect_timeout": options.timeout_s,
        "socket_keepalive": True,
        "socket_read_size": _READ_BYTES,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
    }
    if user or address.password or options.has_password:
        common["credential_provider"] = Credentials(user, lambda: options.read_password() or address.password)
    if address.tls:
        common |= {
            "ssl_ca_certs": _path(options.ca),
            "ssl_certfile": _path(options.cert),
            "ssl_keyfile": _path(options.key),
        }
    return common


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
