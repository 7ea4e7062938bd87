"""Trains the small model of the demo and the tests; not part of the installed package."""
