"""Tests of one module or a few, most of them on fakes."""
