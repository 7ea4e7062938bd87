"""Logs corrupt records found by reads, each once."""

from __future__ import annotations

import threading

import structlog

log = structlog.get_logger()

_MAX_REMEMBERED = 10_000
"""The largest number of corrupt records that are logged."""


class CorruptRecordLog:
    """Logs the corrupt records of the store named ``store``. May be used by several threads."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._logged: set[bytes] = set()

    def note(self, key: bytes, clip_id: str, error: Exception) -> None:
        """Log the record under ``key`` when it is found for the first time."""
        with self._lock:
            if key in self._logged or len(self._logged) == _MAX_REMEMBERED:
                return
            self._logged.add(key)
        log.warning("corrupt record", store=self._store, clip_id=clip_id, error=str(error))
