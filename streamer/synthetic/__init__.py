"""Synthetic clips, a stand-in for the search engine, and the benchmark based on both."""
