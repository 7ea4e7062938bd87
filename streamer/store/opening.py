"""Opens a store by its URL: the table of engines by URL scheme."""

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
    """The interface of an engine's module; each function takes the whole URL, see the function of that name here."""

    def open_store(
        self, url: str, *, model_id: str, dim: int, precision: Precision, read_only: bool, options: StoreOptions | None
    ) -> Store:
        """Open a store for one model's vectors."""
        ...

    def open_existing(self, url: str, *, model_id: str, options: StoreOptions | None) -> Store:
        """Open an existing store."""
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
    "redis+sentinel": _redis,
    "rediss+sentinel": _redis,
}
"""The engines by URL scheme; an engine is imported when it is first used."""


def open_store(
    url: str,
    *,
    model_id: str,
    dim: int,
    precision: Precision = "float16",
    read_only: bool = False,
    options: StoreOptions | None = None,
) -> Store:
    """Open the store at ``url`` for one model's vectors of length ``dim``; created if absent.

    ``read_only`` promises not to write to an existing store (the engine may still register readers).
    ``options`` are for remote stores. Raises :class:`StoreError`, or :class:`StoreUnavailableError` if a later attempt
    may succeed.
    """
    return _engine(url).open_store(
        url, model_id=model_id, dim=dim, precision=precision, read_only=read_only, options=options
    )


def open_existing(url: str, *, model_id: str = "", options: StoreOptions | None = None) -> Store:
    """Open an existing store to inspect it: nothing is created, and vectors may have any length.

    ``model_id``: the model whose records are read; without it, :meth:`Store.stats` still covers all models. Raises
    :class:`StoreError`, or :class:`StoreUnavailableError` if a later attempt may succeed.
    """
    return _engine(url).open_existing(url, model_id=model_id, options=options)


def open_admin(url: str, *, create: bool = False, options: StoreOptions | None = None) -> StoreAdmin:
    """Open the store at ``url`` for upkeep; an absent one is created only with ``create``.

    Raises :class:`StoreError`, or :class:`StoreUnavailableError` if a later attempt may succeed.
    """
    return _engine(url).open_admin(url, create=create, options=options)


def _engine(url: str) -> Engine:
    scheme = url.partition(":")[0]
    if scheme not in ENGINES:
        raise StoreError(f"unsupported store scheme {scheme!r}; supported: {', '.join(ENGINES)}")
    return ENGINES[scheme]()
