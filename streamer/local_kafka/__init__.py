"""A real Apache Kafka on this machine, for the demo, the tests and development; needs the extra ``broker``."""
