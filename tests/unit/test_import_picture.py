"""The picture of the imports in docs/design.md: what is drawn of them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import mmdr
import pytest

ROOT = Path(__file__).parents[2]


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("imports", ROOT / "scripts" / "reference" / "imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


imports = loaded()


def test_an_arrow_is_left_out_where_a_longer_path_replaces_it() -> None:
    chain = {("a", "b"), ("b", "c"), ("c", "d")}
    assert imports.reduced(chain | {("a", "c"), ("a", "d"), ("b", "d"), ("a", "e")}) == chain | {("a", "e")}


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        imports.reduced({("a", "b"), ("b", "c"), ("c", "a")})


def test_a_module_in_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="in no layer: new"):
        imports.picture([["cli"], ["kafka"]], {("cli", "kafka"), ("kafka", "new")})


def test_each_module_and_folder_of_the_package_is_in_one_layer_and_arrows_point_downwards() -> None:
    layers = imports.layers()
    command = ["git", "ls-files", "streamer/*.py", "streamer/*/__init__.py"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    there = {Path(name).parts[1].removesuffix(".py") for name in tracked} - {"__init__"}
    assert sorted(name for layer in layers for name in layer) == sorted(there)
    places = {name: number for number, layer in enumerate(layers) for name in layer}
    arrows = imports.arrows()
    assert ("service", "embedder") in arrows
    assert all(places[one] < places[other] for one, other in arrows)


def test_the_picture_can_be_drawn() -> None:
    lines = imports.markdown().splitlines()
    assert (lines[0], lines[-1]) == ("```mermaid", "```")
    drawing = mmdr.render("\n".join(lines[1:-1])).svg()
    assert all(f">{name}<" in drawing for name in ("cli.py", "kafka/", "vectors.py"))
