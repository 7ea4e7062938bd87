"""From a local file to sampled frames."""
