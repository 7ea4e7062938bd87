"""What every engine of the store fulfils: LMDB, real servers of the Redis protocol, and a real cluster of them."""
