"""Opens a store by its URL: the one place that knows which scheme is which engine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from streamer.store.protocol import StoreError

if TYPE_CHECKING:
    from streamer.settings import Precision
    from streamer.store.admin import StoreAdmin
    from streamer.store.options import StoreOptions
    from streamer.store.protocol import Store


UNKNOWN_ENGINE = "{}: is no engine of this release; use lmdb:PATH, redis://HOST:PORT or redis+cluster://HOST:PORT,..."
"""What is said of a URL that names none; takes the scheme."""


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
    ``options`` are for stores beyond this host. Raises :class:`StoreError`, or :class:`StoreUnavailableError` where
    a later attempt may succeed.
    """
    if (path := lmdb_path(url)) is not None:
        from streamer.store.lmdb.store import LmdbStore  # noqa: PLC0415 - only the engine in use is loaded

        return LmdbStore(path, model_id=model_id, dim=dim, precision=precision, read_only=read_only)
    require_redis(url)
    from streamer.store.redis.store import RedisStore  # noqa: PLC0415

    return RedisStore(url, model_id=model_id, dim=dim, precision=precision, read_only=read_only, options=options)


def open_existing(url: str, *, model_id: str = "", options: StoreOptions | None = None) -> Store:
    """Open a store that is there already, to look into it: nothing is created, vectors may have any length.

    ``model_id`` is whose records are read; without one :meth:`Store.stats` still tells of all models. Raises
    :class:`StoreError`, or :class:`StoreUnavailableError` where a later attempt may succeed.
    """
    if (path := lmdb_path(url)) is not None:
        from streamer.store.lmdb.store import LmdbStore, is_store  # noqa: PLC0415 - only the engine in use is loaded

        if not is_store(path):
            raise StoreError(f"{path}: there is no store")
        return LmdbStore(path, model_id=model_id, dim=None, read_only=True)
    require_redis(url)
    from streamer.store.redis.store import RedisStore  # noqa: PLC0415

    return RedisStore(url, model_id=model_id, dim=None, read_only=True, existing=True, options=options)


def require_redis(url: str) -> None:
    """Raise :class:`StoreError` where a URL is not of the Redis protocol, or its client is not installed."""
    scheme = url.partition(":")[0]
    if scheme not in {"redis", "rediss", "redis+cluster", "rediss+cluster"}:
        raise StoreError(UNKNOWN_ENGINE.format(scheme))
    if find_spec("redis") is None or find_spec("hiredis") is None:
        raise StoreError(f"{scheme}: needs the extra redis: pip install 'cliprerank-streamer[redis]'")


def lmdb_path(url: str) -> str | None:
    """Return the path of an LMDB store's URL, None for that of another engine."""
    scheme, _, path = url.partition(":")
    return path if scheme == "lmdb" else None


def open_admin(url: str, *, create: bool = False, options: StoreOptions | None = None) -> StoreAdmin:
    """Open the store that ``url`` names; one that is absent is only created with ``create``.

    Raises :class:`StoreError`, or :class:`StoreUnavailableError` where a later attempt may succeed.
    """
    if (path := lmdb_path(url)) is not None:
        from streamer.store.lmdb.admin import LmdbAdmin  # noqa: PLC0415 - only the engine in use is loaded

        return LmdbAdmin(path, create=create)
    require_redis(url)
    from streamer.store.redis.admin import RedisAdmin  # noqa: PLC0415

    return RedisAdmin(url, create=create, options=options)
