"""``streamer top``: a running system in a terminal, from /metrics of its instances and from the topics."""
