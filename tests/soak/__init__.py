"""Runs too long for every `make test`."""
