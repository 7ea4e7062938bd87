"""Decoding in separate, confined processes with limits on time and memory."""
