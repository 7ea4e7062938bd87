"""A machine that has no thread left, for a while."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


@contextmanager
def no_threads(
    monkeypatch: pytest.MonkeyPatch, which: Callable[[threading.Thread], bool] = lambda _: True
) -> Iterator[list[str]]:
    """Let no thread be started meanwhile of those that ``which`` names; give the names of those that were refused."""
    begin, refused = threading.Thread.start, list[str]()

    def start(thread: threading.Thread) -> None:
        if not which(thread):
            begin(thread)
            return
        refused.append(thread.name)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        yield refused
