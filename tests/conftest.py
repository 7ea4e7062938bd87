"""Fixtures of all tests: a real Kafka for the session, and names of one's own on it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import browser
import pytest

from streamer.kafka.broker import LocalKafka

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def kafka() -> Iterator[LocalKafka]:
    """One running broker; where it cannot start, each test that needs it fails with the broker's own words."""
    with LocalKafka() as broker:
        yield broker


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for a module's tests; :mod:`browser` says what to look at with it."""
    with browser.running() as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """Put before every topic and group name of a test, so that tests share the broker and nothing else."""
    return f"t{secrets.token_hex(3)}."
