"""The groups of commands that :mod:`streamer.cli` puts together, a module each."""
