"""The embedded engine, for the processes of one host: ``lmdb:PATH``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.lmdb.store import LmdbStore, is_store
from streamer.store.protocol import StoreError

if TYPE_CHECKING:
    from streamer.settings import Precision
    from streamer.store.options import StoreOptions


def open_store(
    url: str, *, model_id: str, dim: int, precision: Precision, read_only: bool, options: StoreOptions | None
) -> LmdbStore:
    """Open the store in a folder; ``options`` are ignored."""
    del options
    return LmdbStore(_path(url), model_id=model_id, dim=dim, precision=precision, read_only=read_only)


def open_existing(url: str, *, model_id: str, options: StoreOptions | None) -> LmdbStore:
    """Open the existing store in a folder; ``options`` are ignored."""
    del options
    path = _path(url)
    if not is_store(path):
        raise StoreError(f"{path}: no such store")
    return LmdbStore(path, model_id=model_id, dim=None, read_only=True)


def open_admin(url: str, *, create: bool, options: StoreOptions | None) -> LmdbAdmin:
    """Open the store in a folder for upkeep; ``options`` are ignored."""
    del options
    return LmdbAdmin(_path(url), create=create)


def _path(url: str) -> str:
    return url.partition(":")[2]
