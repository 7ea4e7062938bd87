"""The store of 100,000 records, to a cluster and back; `make store-copy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.copies import there_and_back

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis_servers import Cluster

RECORDS = 100_000
DIM = 128


def test_a_copy_to_a_cluster_and_back_killed_twice_on_either_way_is_the_same_to_the_byte(
    tmp_path: Path, valkey_cluster: Cluster
) -> None:
    there_and_back(tmp_path, f"{valkey_cluster.url}?name=copied", RECORDS, DIM, say=print)
