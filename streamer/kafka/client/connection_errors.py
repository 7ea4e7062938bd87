"""Why no connection can be made: a request only reports a timeout."""

from __future__ import annotations

from confluent_kafka import KafkaError

_CONNECTION_FAULTS = (KafkaError._AUTHENTICATION, KafkaError._SSL)


class ConnectionErrors:
    """An ``error_cb`` that remembers the last connection error, while requests only time out."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Handle an error that concerns the client as a whole."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last = error

    @property
    def is_final(self) -> bool:
        """Whether retrying is useless: the credentials are wrong, or a certificate is not trusted."""
        return self.last is not None and self.last.code() in _CONNECTION_FAULTS

    def describe(self, otherwise: str) -> str:
        """Return the reason, or ``otherwise`` where none is known."""
        return self.last.str() if self.last is not None else otherwise
