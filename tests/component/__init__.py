"""Tests of single parts that need a model, a browser, a server of the Redis protocol or a while."""
