"""Corrupt records that reads have met: counted, and each clip logged once."""

from __future__ import annotations

import threading

import structlog

log = structlog.get_logger()

_MAX_REMEMBERED = 10_000
"""Corrupt records that are logged, each once; more are counted only."""


class CorruptReads:
    """How many there were in the store that is called ``store``. May be used by several threads."""

    def __init__(self, store: str) -> None:
        self.count = 0
        self._store = store
        self._lock = threading.Lock()
        self._logged: set[bytes] = set()

    def note(self, key: bytes, clip_id: str, error: Exception) -> None:
        """Count the record under ``key``, and log it where it is met for the first time."""
        with self._lock:
            self.count += 1
            if key in self._logged or len(self._logged) == _MAX_REMEMBERED:
                return
            self._logged.add(key)
        log.warning("corrupt record", store=self._store, clip_id=clip_id, error=str(error))
