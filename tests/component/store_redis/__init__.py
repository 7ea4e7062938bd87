"""The store beyond one host where it is not like the others: URLs, access, failures, durability, its cache."""
