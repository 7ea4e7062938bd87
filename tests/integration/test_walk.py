"""One query and one upload followed through the real services on a real broker."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streamer.local_kafka.broker import LocalKafka

ROOT = Path(__file__).parents[2]


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("walk", ROOT / "scripts" / "walk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walk = loaded()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["query", "upload"])
def test_a_record_enters_the_modules_of_the_file_map_and_none_calls_back_and_forth(
    kafka: LocalKafka, what: str
) -> None:
    found = walk.walk(what, kafka.bootstrap_servers)
    stored = json.loads((ROOT / "docs" / "walk.json").read_bytes())[what]
    assert {*stored} <= {*found.modules}
    # What watches the topics in the background may happen to look at the record while it is in flight.
    assert all(name.startswith("streamer.kafka.watch.") for name in {*found.modules} - {*stored})
    assert found.back_and_forth == []
    # Scoring is given complete blocks of vectors; it calls nothing of the store that reads them.
    assert not [callee for caller, callee in found.calls if caller == "streamer.scoring" and ".store" in callee]
