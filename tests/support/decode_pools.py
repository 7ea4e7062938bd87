"""Pools of decoders, and what tests ask of them and of their processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from streamer.video.errors import ClipError
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import SampledClip, Sampling
from tests.support.prepares import act

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLING = Sampling(interval=0.1, max_frames=8)
MEMORY = 1 << 30
GOOD_SHADE = 255
"""At which :func:`tests.support.prepares.act` does nothing out of the ordinary."""

Reported = dict[str, Any]
"""What :func:`tests.support.prepares.report` tells."""


class Pools:
    """Makes pools, remembers what they tell of replaced processes, and closes them."""

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self._made: list[DecodePool] = []

    def make(self, prepare: Callable[..., Any] = act, sampling: Sampling = SAMPLING, **changed: Any) -> DecodePool:
        """Make a pool of two workers; ``changed`` are other arguments of it."""
        settings: dict[str, Any] = {"workers": 2, "timeout": 120.0, "memory": MEMORY, "slow_after": 60.0}
        pool = DecodePool(sampling, prepare, replaced=self.replaced.append, **(settings | changed))
        self._made.append(pool)
        return pool

    def close(self) -> None:
        """Close all pools."""
        for pool in self._made:
            pool.close()


def decoded(pool: DecodePool, path: Path) -> SampledClip[Any]:
    """Return the clip that the pool has sampled."""
    with pool.sampled(path) as clip:
        return clip


def failure(pool: DecodePool, path: Path) -> ClipError:
    """Return the error that a clip must end with."""
    with pytest.raises(ClipError) as raised, pool.sampled(path):
        pass
    return raised.value


def reported(clip: SampledClip[Any]) -> Reported:
    """Return what the process told with the last frame."""
    told: Reported = json.loads(clip.frames[-1].tobytes())
    return told


def is_alive(pid: int) -> bool:
    """Tell whether a process runs: it is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def template_of(pool: DecodePool) -> int:
    """Return the id of the process that the decoders are forked from."""
    template = pool._template
    assert template is not None
    return template._process.pid
