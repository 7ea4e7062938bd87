"""How torch's threads wait for each other; must be set before torch is imported."""

from __future__ import annotations

import os

_SPIN_COUNT = "1000"
"""Iterations of a spin loop: some ten microseconds, the time between two operations of a model."""


def spin_briefly() -> None:
    """Let threads that wait for others in a matrix product yield their core soon; a user's setting is kept.

    GNU's OpenMP, which is part of torch, reads this when it is loaded. Its default is 300,000 iterations, milliseconds
    on current processors. This makes nothing faster while all cores are free, and when decoders need the cores too, the
    spinning threads delay the thread that they wait for.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
