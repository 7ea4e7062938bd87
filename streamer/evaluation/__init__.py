"""What reranking gains: TREC files, inferred average precision, replays, sweeps and reports."""
