"""Hold the tests of this folder to what makes them fast: no server, no browser, no model, no host but this one."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

FOLDER = Path(__file__).parent
SERVERS = {"kafka", "valkey", "redis", "valkey_cluster", "chromium"}
"""The shared fixtures that start a program."""
HEAVY = {"playwright", "redis", "torch"}
"""Packages that take a second or more to import, or talk to a program that is not there."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Refuse a test of this folder that uses a server or a browser."""
    for item in items:
        if item.path.is_relative_to(FOLDER) and (used := SERVERS & set(getattr(item, "fixturenames", ()))):
            raise pytest.UsageError(f"{item.nodeid} uses {sorted(used)}: it belongs in tests/component")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse a module of this folder that imports a heavy package."""
    before = HEAVY & sys.modules.keys()
    report = yield
    if imported := (HEAVY & sys.modules.keys()) - before:
        raise pytest.UsageError(f"{collector.nodeid} imports {sorted(imported)}: it belongs in tests/component")
    return report


@pytest.fixture(autouse=True)
def inner_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that imports a heavy package or connects to another host."""
    before = HEAVY & sys.modules.keys()
    elsewhere: list[object] = []

    def watched(connect: Any) -> Any:
        def connect_here(self: socket.socket, address: Any) -> Any:
            if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_loopback(address[0]):
                elsewhere.append(address)
                raise OSError(f"tests/unit connects to no other host: {address}")
            return connect(self, address)

        return connect_here

    monkeypatch.setattr(socket.socket, "connect", watched(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", watched(socket.socket.connect_ex))
    yield
    assert not elsewhere, f"connected to {elsewhere}"
    imported = (HEAVY & sys.modules.keys()) - before
    assert not imported, f"imported {sorted(imported)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
