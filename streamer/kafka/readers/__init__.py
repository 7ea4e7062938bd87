"""Clients outside the services: publishing, and reading topics without a group."""
