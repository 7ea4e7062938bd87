"""Exactly-once commits: transactions, the producers that take turns, the group membership."""
