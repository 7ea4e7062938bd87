"""Which groups of clips users see, by the clips' attributes, before and after reranking."""
