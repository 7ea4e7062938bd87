"""Which addresses are public, whatever they are dressed in."""

from __future__ import annotations

import socket

import pytest

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.network import Networks

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "2606:2800:220:1:248:1893:25c8:1946",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",  # 8.8.8.8 by NAT64
]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - no binding, an address to refuse
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_connected_to(address: str) -> None:
    Networks().check(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ClipError) as caught:
        Networks().check(address)
    assert (caught.value.reason, caught.value.retry) == (Reason.URI_REFUSED, Retry.NEVER)
    assert address in caught.value.detail


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::7"])
def test_addresses_in_allowed_networks_are_connected_to_however_they_are_written(address: str) -> None:
    Networks(["10.0.0.0/8", "fd00::/8"]).check(address)
    with pytest.raises(ClipError):
        Networks(["10.2.0.0/16", "fd01::/16"]).check(address)


def test_no_socket_is_made_for_an_address_that_is_refused() -> None:
    with pytest.raises(ClipError):
        Networks().open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))
    with Networks(["127.0.0.1"]).open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))) as made:
        assert made.family is socket.AF_INET
