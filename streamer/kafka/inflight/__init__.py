"""Records in flight, by partition, and which offsets may be committed."""
