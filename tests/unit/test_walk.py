"""The walk of a record: what its profiler counts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "walk.py"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("walk", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


walk = loaded()


def module(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(source, f"{name}.py", "exec"), vars(made))  # noqa: S102 - our own lines
    return made


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two modules that call each other, one that is handed what it calls, and one that runs without a record too."""
    module("streamer.below", "def run(work):\n    work()\n", monkeypatch)
    module("streamer.beat", "def beat():\n    pass\n", monkeypatch)
    left = module("streamer.left", "def one():\n    right.two()\ndef end():\n    pass\n", monkeypatch)
    right = module("streamer.right", "from streamer.left import end\ndef two():\n    end()\n", monkeypatch)
    left.right = right
    return module(
        "streamer.above",
        "from streamer.beat import beat\nfrom streamer.below import run\nfrom streamer.left import one\n"
        "def turn():\n    beat()\ndef work():\n    one()\ndef record():\n    turn()\n    run(work)\n",
        monkeypatch,
    )


def test_a_record_enters_what_is_not_called_without_it_in_the_order_of_first_entry(service: Any) -> None:
    profiler = walk._Profiler()
    sys.setprofile(profiler)
    try:
        service.record()  # at the start
        profiler.phase = "idle"
        service.turn()
        profiler.phase = "record"
        service.record()
    finally:
        sys.setprofile(None)
    found = profiler.found(["streamer.decoder"])
    assert found.modules == ["streamer.above", "streamer.below", "streamer.left", "streamer.right", "streamer.decoder"]
    assert found.back_and_forth == [("streamer.left", "streamer.right")]
    assert found.callbacks == [("streamer.above", "streamer.below")]
    assert ("streamer.above", "streamer.left") in found.calls
    assert ("streamer.above", "streamer.beat") not in found.calls


def test_the_decoders_modules_follow_those_of_the_service_that_starts_it() -> None:
    profiler = walk._Profiler()
    for name in ("streamer.embedder", "streamer.video.isolation.pool", "streamer.store"):
        profiler.calls[(name, "function"), None] = None
    decoder = ["streamer.video.isolation.pool", "streamer.video.sampling.sample"]
    assert profiler.found(decoder).modules == [
        "streamer.embedder",
        "streamer.video.isolation.pool",
        "streamer.video.sampling.sample",
        "streamer.store",
    ]


def test_each_module_of_the_stored_walks_exists_and_they_keep_to_their_limits() -> None:
    walks = json.loads((ROOT / "docs" / "walk.json").read_bytes())
    assert walks.keys() == walk.LIMITS.keys()
    for what, modules in walks.items():
        assert len(modules) == len({*modules}) <= walk.LIMITS[what]
        assert all(walk.purpose(name) for name in modules)


def test_the_file_map_of_the_design_is_that_of_the_stored_walks() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
