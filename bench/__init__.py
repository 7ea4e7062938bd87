"""Benchmarks; most results are ratios within one run. `python -m bench` runs the default set, `... NAME` one of them.

cases/    the benchmarks: each is a module with ``NAME``, ``measure(quick)``, which returns figures, and ``main()``
harness/  what they share: workloads, processes under test, what ours is compared with, targets, the machine, reports
peers/    the same reranker by other stream libraries
"""

from streamer.encoders.openmp import spin_briefly

# Before torch is imported, so that threads in this process wait as they do in a service.
spin_briefly()
