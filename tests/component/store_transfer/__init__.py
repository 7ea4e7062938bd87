"""Whole stores copied, checked and compared, on LMDB."""
