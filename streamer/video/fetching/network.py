"""The allowed addresses of http(s) sources, checked on exactly the address of each connection.

A name is neither checked once and resolved again later (the second result may differ), nor judged by its spelling: the
addresses returned by the resolver are checked and used, and a socket is created only for an allowed address. This
covers literal addresses too, which bypass the resolver.

An address is public if it is unicast and globally reachable according to IANA's registries, as implemented by
:mod:`ipaddress`. An IPv4 address inside an IPv6 one (IPv4-mapped, NAT64) is treated as the IPv4 address, because
packets are delivered there.
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
"""Number of concurrent lookups; a name is never looked up twice at the same time."""


class Networks:
    """The allowed targets of connections: public addresses, and ``allowed`` networks in CIDR notation.

    Raises ValueError, which names it, for an invalid network.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed: list[IPv4Network | IPv6Network] = []
        for network in allowed:
            try:
                self._allowed.append(ip_network(network))
            except ValueError as error:
                raise ValueError(f"{network!r} is not a network: {error}") from None

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
        """Create the socket for one result of ``getaddrinfo``, just before it is connected."""
        family, kind, protocol, _, address = found
        self.check(address[0])
        return socket.socket(family, kind, protocol)


class CheckedResolver(AbstractResolver):
    """Resolves names to allowed addresses; a name with any other address is refused.

    It has its own threads, because the event loop has few, and an unresponsive name server blocks one for longer than
    any caller waits.
    """

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises :class:`ClipError`, or OSError if there is none."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        results = []
        for its_family, _, protocol, _, address in found:
            # Without IPv6 support in Python, an IPv6 address is raw bytes and cannot be used.
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
        """Stop the resolver."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which a packet for this one is delivered."""
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        # 6to4 and Teredo are global unicast addresses of IPv4 hosts, through relays that no longer exist.
        tunnelled = address.sixtofour is not None or address.teredo is not None
        return address in _GLOBAL_UNICAST and address.is_global and not tunnelled
    return address.is_global and not address.is_multicast
