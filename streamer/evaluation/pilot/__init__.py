"""A pilot: what reranking would change for a platform's own users, from recorded queries and, if given, clicks."""
