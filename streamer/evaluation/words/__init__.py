"""Probes of bias: queries that differ in one word, asked of a store, and what masked frames do to the answers."""
