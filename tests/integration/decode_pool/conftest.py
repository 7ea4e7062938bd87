"""Pools that are closed after a test, and a clip for each act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer.synthetic.write import write_h264
from tests.support.decode_pools import GOOD_SHADE, Pools
from tests.support.prepares import Act

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.close()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One clip of three frames for each act, and a good one."""
    folder = tmp_path_factory.mktemp("acts")
    made = {}
    for shade in (*Act, GOOD_SHADE):
        made[int(shade)] = folder / f"{shade}.mp4"
        write_h264(made[int(shade)], [np.full((64, 64, 3), shade, np.uint8)] * 3, fps=10)
    return made
