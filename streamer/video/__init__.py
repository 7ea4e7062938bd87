"""From a URI to sampled frames; all that imports av and fsspec."""
