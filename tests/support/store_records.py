"""Raw records for the tests of whole stores."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import signal
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from streamer.store import Clip, Position, record_format
from streamer.store.admin import Raw, StoreAdmin
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.opening import open_admin
from streamer.store.redis.admin import RedisAdmin
from streamer.store.transfer import copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.settings import Precision
    from streamer.store.upkeep import Advance

DIM = 8
FIRST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MODEL = "model-a"
PREFIX = record_format.model_prefix(MODEL)


def clip(clip_id: str, version: int = 1, offset: int = 0, *, vectors: int = 2, log: str = "log") -> Clip:
    """Make a clip in which everything follows from the arguments."""
    uploaded_at = FIRST + dt.timedelta(microseconds=version)
    rows = np.full((vectors, DIM), version, np.float32)
    return Clip(clip_id, uploaded_at, Position.of(log, offset), 5, rows, np.arange(vectors, dtype=np.uint32))


def upload(
    version: int, offset: int = 0, *, log: str = "log", clip_id: str = "c", vectors: int = 2, prefix: bytes = PREFIX
) -> Raw:
    """Make the record of an upload."""
    value = record_format.encode(clip(clip_id, version, offset, log=log, vectors=vectors), "float16")
    return Raw(record_format.key(prefix, clip_id), value)


def delete(version: int, offset: int = 0, *, log: str = "log", clip_id: str = "c") -> Raw:
    """Make the tombstone of a delete."""
    uploaded_us = record_format.microseconds(FIRST) + version
    value = record_format.encode_tombstone(clip_id, record_format.Version(uploaded_us, False, Position.of(log, offset)))
    return Raw(record_format.key(PREFIX, clip_id), value)


def damaged(raw: Raw) -> Raw:
    """Flip the last bit."""
    return Raw(raw.key, raw.value[:-1] + bytes([raw.value[-1] ^ 1]))


def many(count: int, seed: int = 0, dim: int = DIM) -> Iterator[Raw]:
    """Make records of all precisions and several sizes, every tenth a tombstone, some with long ids."""
    random = np.random.default_rng(seed)
    precisions: list[Precision] = ["float32", "float16", "int8"]
    for number in range(count):
        clip_id = f"clip-{number}" + ("x" * 495 if number % 97 == 0 else "")
        if number % 10 == 0:
            yield delete(number, number, clip_id=clip_id)
            continue
        vectors = random.standard_normal((1 + number % 7, dim)).astype(np.float32)
        times = np.arange(len(vectors), dtype=np.uint32)
        uploaded_at = FIRST + dt.timedelta(microseconds=number)
        made = Clip(clip_id, uploaded_at, Position.of("log", number), number, vectors, times)
        yield Raw(record_format.key(PREFIX, clip_id), record_format.encode(made, precisions[number % 3]))


def fill(admin: StoreAdmin, records: Iterator[Raw]) -> None:
    """Put many records of :data:`MODEL`."""
    admin.register({PREFIX: MODEL})
    while some := list(itertools.islice(records, 2_000)):
        admin.put(some)


def put_unchecked(admin: StoreAdmin, raw: Raw) -> None:
    """Put a record whatever it is, as a fault of a disk or a stranger would."""
    if isinstance(admin, LmdbAdmin):
        admin._opened().write(lambda transaction: transaction.put(*raw))
    elif isinstance(admin, RedisAdmin):
        space = admin._opened()
        space.link.one("SET", space.buckets.full(raw.key), raw.value)


def everything(admin: StoreAdmin) -> dict[bytes, bytes]:
    """Return all records by their keys."""
    return dict(itertools.chain.from_iterable(page.records for page in admin.scan()))


def digest(admin: StoreAdmin) -> tuple[int, str]:
    """Return how many records there are, and a checksum of them all with their keys."""
    by_key = {raw.key: xxh3_128_digest(raw.value) for page in admin.scan() for raw in page.records}
    together = b"".join(b"%d %s%s" % (len(key), key, by_key[key]) for key in sorted(by_key))
    return len(by_key), xxh3_128_hexdigest(together)


def dying_after(pages: int, last: str) -> Advance:
    """Return what kills this process, as ``kill -9`` does, once a stage has come so many pages far."""
    left = itertools.count(pages - 1, -1)

    def advance(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - by name, as Advance says
        if stage == last and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return advance


def copy_and_die(source: str, target: str, pages: int, stage: str) -> None:
    """Copy a store in this process, which dies of it."""
    copy(open_admin(source), open_admin(target, create=True), advance=dying_after(pages, stage))
