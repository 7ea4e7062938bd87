"""Small models, made once, and copies of one that a test may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import open_clip
import pytest
import torch

from tests.support.open_clip_models import KINDS, make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which leaves nothing to measure
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what makes a model of a kind once, and returns its folder, which nobody may change."""
    root = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.exists() else make_model(directory, KINDS[name])

    return get


@pytest.fixture
def clip_copy(models: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the folder of the kind "clip", which the test may change."""
    return Path(shutil.copytree(models("clip"), tmp_path / "copy"))


@pytest.fixture
def registered(tmp_path: Path) -> str:
    """Return the name of a small architecture among open_clip's built-in ones."""
    path = tmp_path / "tiny-registered.json"
    path.write_text(json.dumps(KINDS["clip"].config))
    open_clip.add_model_config(path)
    return "tiny-registered"
