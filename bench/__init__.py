"""Benchmarks; most results are ratios within one run. `python -m bench` runs the default set, `... NAME` one of them.

Each benchmark is a module with ``NAME``, ``measure(quick)``, which returns JSON-serializable figures, and ``main()``.
"""

from streamer.encoders.openmp import spin_briefly

# Before torch is imported, so that threads in this process wait as they do in a service.
spin_briefly()
