"""What tests and benchmarks share: a driver that stands outside the service, servers, footage, oracles."""
