"""The remote engine: servers of the Redis protocol, alone or as a cluster."""
