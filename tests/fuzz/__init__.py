"""Damaged, lying and bomb-like files and events, and what the service does with them."""
