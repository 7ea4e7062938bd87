"""What benchmarks share: the machine, workloads, processes under test, what ours is compared with, targets, reports."""
