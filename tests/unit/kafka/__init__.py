"""The Kafka side of a service on a cluster in memory: each failure window by name."""
