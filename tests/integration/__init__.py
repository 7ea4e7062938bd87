"""Tests of the service on a real Kafka, real servers and real processes."""
