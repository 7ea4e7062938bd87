"""The topics: their specification in ``topics/``, and bringing a cluster to it."""
