"""Tests of the benchmarks themselves: their arithmetic, and that what they compare is the same."""
