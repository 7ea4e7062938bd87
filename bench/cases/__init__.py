"""The benchmarks, a module each, and the measurements behind docs/capacity.md."""
