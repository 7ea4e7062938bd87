"""How torch's threads wait for each other; to be said before torch is imported."""

from __future__ import annotations

import os

_SPIN_COUNT = "1000"
"""Turns of a waiting loop: some ten microseconds, the time between two operations of a model."""


def spin_briefly() -> None:
    """Let threads that wait for others in a product give their processor away soon; what the user has set stays.

    GNU's OpenMP, which torch brings, reads this when it is loaded. Its own default is 300,000 turns, milliseconds on
    current processors: as long as all processors are free they make nothing faster, and where decoders want the
    processors too, the threads that wait keep them from the one that is waited for.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
