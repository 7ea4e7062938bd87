"""From a URI to a local file."""
