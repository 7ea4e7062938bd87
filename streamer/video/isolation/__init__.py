"""Decoding in processes of its own, with limits on time and memory."""
