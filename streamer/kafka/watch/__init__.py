"""What is measured and watched of Kafka: lag, statistics, topics."""
