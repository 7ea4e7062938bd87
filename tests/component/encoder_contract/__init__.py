"""One contract for every encoder, run on small models of each architecture that open_clip has."""
