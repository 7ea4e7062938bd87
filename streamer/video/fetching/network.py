"""Which addresses http(s) sources may have, checked on the very address that a connection is made to.

A name is checked neither once and then resolved again (it may answer otherwise the second time), nor by what it looks
like: the addresses that the resolver returns are checked and are those that are connected to, and the socket itself
is made only for an address that passes. That catches literal addresses too, which no resolver sees.

Public is what IANA's registries call globally reachable, as :mod:`ipaddress` knows them, and unicast. An IPv4 address
inside an IPv6 one (IPv4-mapped, NAT64) is judged as the IPv4 address, since that is where it leads.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver, ResolveResult

from streamer.events import Reason
from streamer.video.errors import ClipError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_LOOKUPS = 32
"""Names looked up at the same time; a name that is being looked up is not looked up again meanwhile."""


class Networks:
    """Where connections may go: public addresses, and ``allowed`` networks in CIDR notation.

    ValueError names a network that is none.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed: list[IPv4Network | IPv6Network] = []
        for network in allowed:
            try:
                self._allowed.append(ip_network(network))
            except ValueError as error:
                raise ValueError(f"{network!r} is no network: {error}") from None

    def check(self, address: str) -> None:
        """Raise :class:`ClipError` URI_REFUSED unless connections may go to this address."""
        found = ip_address(address)
        leads_to = (_embedded(found) or found) if isinstance(found, IPv6Address) else found
        allowed = any(each in network for each in (found, leads_to) for network in self._allowed)
        if not allowed and not _is_public(leads_to):
            raise ClipError(
                Reason.URI_REFUSED, f"the host's address {address} is neither public nor in an allowed network"
            )

    def open_socket(self, found: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one result of ``getaddrinfo``, just before it is connected."""
        family, kind, protocol, _, address = found
        self.check(address[0])
        return socket.socket(family, kind, protocol)


class CheckedResolver(AbstractResolver):
    """Resolves names to addresses that may be connected to; a name that has any other is refused.

    It has threads of its own: those of the event loop are few, and a name server that does not answer holds one for
    longer than anybody waits.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises :class:`ClipError` and, where there is none, OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        results = []
        for its_family, _, protocol, _, address in found:
            # Where Python has no IPv6 support an IPv6 address comes as raw bytes, and cannot be connected to.
            if not isinstance(address[0], str):
                continue
            self._networks.check(address[0])
            results.append(
                ResolveResult(
                    hostname=host,
                    host=address[0],
                    port=port,
                    family=its_family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Look up nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which a packet for this one is delivered."""
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        # 6to4 and Teredo lie in global unicast space, and lead to IPv4 hosts by way of relays that nobody runs now.
        tunnelled = address.sixtofour is not None or address.teredo is not None
        return address in _GLOBAL_UNICAST and address.is_global and not tunnelled
    return address.is_global and not address.is_multicast
