"""A cluster in memory for each test; a fault that a test has prepared and that does not come about fails it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.committing import Case
from tests.support.fake_kafka import fake_kafka

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_kafka import FakeKafka


@pytest.fixture
def fake() -> Iterator[FakeKafka]:
    with fake_kafka() as made:
        yield made
        made.assert_all_fired()


@pytest.fixture
def fake_pair() -> Iterator[FakeKafka]:
    """With two partitions of the input."""
    with fake_kafka(partitions=2) as made:
        yield made
        made.assert_all_fired()


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    """A committer that has started."""
    made = Case(fake)
    made.start()
    return made
