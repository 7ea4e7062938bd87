"""Opens a store by its URL: the one place that knows which scheme is which engine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from streamer.store.protocol import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamer.settings import Precision
    from streamer.store.admin import StoreAdmin
    from streamer.store.options import StoreOptions
    from streamer.store.protocol import Store


class Engine(Protocol):
    """What an engine's module offers; each function takes the whole URL and does what its namesake here says."""

    def open_store(
        self, url: str, *, model_id: str, dim: int, precision: Precision, read_only: bool, options: StoreOptions | None
    ) -> Store:
        """Open a store for one model's vectors."""
        ...

    def open_existing(self, url: str, *, model_id: str, options: StoreOptions | None) -> Store:
        """Open a store that is there already."""
        ...

    def open_admin(self, url: str, *, create: bool, options: StoreOptions | None) -> StoreAdmin:
        """Open a store for upkeep."""
        ...


def _lmdb() -> Engine:
    from streamer.store.lmdb import engine  # noqa: PLC0415 - only the engine in use is loaded

    return engine


def _redis() -> Engine:
    if find_spec("redis") is None or find_spec("hiredis") is None:
        raise StoreError("the Redis protocol needs the extra redis: pip install 'cliprerank-streamer[redis]'")
    from streamer.store.redis import engine  # noqa: PLC0415

    return engine


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "lmdb": _lmdb,
    "redis": _redis,
    "rediss": _redis,
    "redis+cluster": _redis,
    "rediss+cluster": _redis,
}
"""The engines by URL scheme; each is imported when it is first opened."""


def open_store(
    url: str,
    *,
    model_id: str,
    dim: int,
    precision: Precision = "float16",
    read_only: bool = False,
    options: StoreOptions | None = None,
) -> Store:
    """Open the store that ``url`` names for one model's vectors of length ``dim``; created where absent.

    ``read_only`` promises no writes to a store that exists (the engine may still keep reader bookkeeping).
    ``options`` are for remote stores. Raises :class:`StoreError`, or :class:`StoreUnavailableError` where a later
    attempt may succeed.
    """
    return _engine(url).open_store(
        url, model_id=model_id, dim=dim, precision=precision, read_only=read_only, options=options
    )


def open_existing(url: str, *, model_id: str = "", options: StoreOptions | None = None) -> Store:
    """Open a store that is there already, to look into it: nothing is created, vectors may have any length.

    ``model_id`` is whose records are read; without one :meth:`Store.stats` still tells of all models. Raises
    :class:`StoreError`, or :class:`StoreUnavailableError` where a later attempt may succeed.
    """
    return _engine(url).open_existing(url, model_id=model_id, options=options)


def open_admin(url: str, *, create: bool = False, options: StoreOptions | None = None) -> StoreAdmin:
    """Open the store that ``url`` names; one that is absent is only created with ``create``.

    Raises :class:`StoreError`, or :class:`StoreUnavailableError` where a later attempt may succeed.
    """
    return _engine(url).open_admin(url, create=create, options=options)


def _engine(url: str) -> Engine:
    scheme = url.partition(":")[0]
    if scheme not in ENGINES:
        raise StoreError(f"unsupported store scheme {scheme!r}; supported: {', '.join(ENGINES)}")
    return ENGINES[scheme]()
