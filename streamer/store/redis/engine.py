"""The engine of remote stores with the Redis protocol: ``redis://HOST:PORT`` and its variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.store.redis.admin import RedisAdmin
from streamer.store.redis.store import RedisStore

if TYPE_CHECKING:
    from streamer.settings import Precision
    from streamer.store.options import StoreOptions


def open_store(
    url: str, *, model_id: str, dim: int, precision: Precision, read_only: bool, options: StoreOptions | None
) -> RedisStore:
    """Open the store at a URL."""
    return RedisStore(url, model_id=model_id, dim=dim, precision=precision, read_only=read_only, options=options)


def open_existing(url: str, *, model_id: str, options: StoreOptions | None) -> RedisStore:
    """Open the existing store at a URL."""
    return RedisStore(url, model_id=model_id, dim=None, read_only=True, existing=True, options=options)


def open_admin(url: str, *, create: bool, options: StoreOptions | None) -> RedisAdmin:
    """Open the store at a URL for upkeep."""
    return RedisAdmin(url, create=create, options=options)
