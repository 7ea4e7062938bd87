"""Benchmarks: ratios within one run. `python -m bench` runs them all, `python -m bench NAME` one of them.

Each is a module with ``NAME``, ``measure(quick)``, which returns figures that can be written as JSON, and ``main()``.
"""

import sys
from pathlib import Path

from streamer.encoders.openmp import spin_briefly

# Before torch is imported: what is measured in this process waits as it does in a service.
spin_briefly()

# The benchmarks talk to a running service as its tests do.
sys.path += [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("integration", "")]
