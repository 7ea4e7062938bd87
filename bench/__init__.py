"""Benchmarks: ratios within one run. `python -m bench` runs them all, `python -m bench NAME` one of them.

Each is a module with ``NAME``, ``measure(quick)``, which returns figures that can be written as JSON, and ``main()``.
"""

from streamer.encoders.openmp import spin_briefly

# Before torch is imported, so that threads in this process wait as they do in a service.
spin_briefly()
