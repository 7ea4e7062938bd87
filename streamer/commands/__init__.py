"""The commands that :mod:`streamer.cli` assembles, one module each."""
