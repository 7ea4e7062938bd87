"""Streaming CLIP reranker: Kafka in, reranked results with the moment that matched out."""

__version__ = "0.1.0"
