"""The embedded engine: LMDB, shared by the processes of one host."""
