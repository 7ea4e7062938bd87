"""Simulations of what the evaluation decides: does a pilot or a sweep decide rightly, and how often?

``python -m tests.decisions`` (``make decide``) runs them all.
"""
