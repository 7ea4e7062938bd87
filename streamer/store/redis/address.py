"""The keys of a store in a Redis keyspace, and the parsing of its URL.

``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``, ``rediss://`` with TLS, ``redis+cluster://HOST[:PORT],HOST...`` and
``rediss+cluster://`` for a cluster, with a few of its nodes, and ``redis+sentinel://HOST[:PORT],HOST.../SERVICE[/DB]``
and ``rediss+sentinel://`` for a primary that Sentinels name; each with ``?name=`` and ``?buckets=``.

A record's key is the store's name, its bucket's hash tag in braces, and the engine-independent key
(:func:`streamer.store.record_format.key`). A cluster places keys by their hash tag: a bucket is a set of clips in one
slot, so that one command reads all of a query's clips in it. Fewer buckets mean fewer commands; but a bucket is also
the smallest unit that can be moved, so there cannot be more nodes than buckets, and nodes with many buckets are more
equal than nodes with few. Tags are chosen so that buckets are evenly distributed over the slots: a cluster that divides
the slots evenly has as many buckets on each node, or one more or less. All records of a clip are in one bucket, for all
models.

A clip's bucket is a hash of its id and of a salt of the store, since otherwise whoever names clips could put all of
theirs into one bucket, on one node. A store of an earlier release has no salt and stays as it is; ``streamer store
copy`` into a new store gives it one.

Besides its records, a bucket has a hash of the models that have written to it, ids by prefixes, and the store's format.
It is written before the records and on the same node, so that a replica that takes over a record also has its model,
and a delete finds all of a clip's records. The format fixes the number of buckets, the salt, and whether records are in
parts (:mod:`streamer.store.redis.parts`). Its own key is the store's name alone; where that is lost, the format is
found again in the buckets, some of which have the same tag whatever their number is. A store of the format's version 2
has only the salt in its buckets, and keeps that version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from streamer.store.protocol import StoreError, masked
from streamer.store.record_format import PREFIX_BYTES

DEFAULT_BUCKETS: Final = 64
"""The number of buckets of a new store on a few nodes, and of every store of version 2 whose URL does not set it."""
BUCKETS_PER_NODE: Final = 16
"""With so many buckets a node, the fullest has a sixteenth more than the mean."""
DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
_SCHEMES = {f"redis{tls}{kind}": (kind, bool(tls)) for kind in ("", "+cluster", "+sentinel") for tls in ("", "s")}
"""For each scheme its kind, and whether it means TLS."""
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
EARLIER, VERSION = 2, 3
"""The versions of a store's format. A store keeps the one with which it was created."""
_FORMAT = re.compile(
    r"clip embeddings (?:(?P<earlier>2)|3) buckets (?P<buckets>[0-9]{1,9})(?: salt (?P<salt>[0-9a-f]{16}))?"
    r"(?P<parts>(?(earlier)| parts)?)"
)
UNSALTED: Final = 0
"""The salt of a store that has none: xxh3's own default."""
SALT_FIELD: Final = b"salt"
"""The field of a bucket's hash of models that has the salt, in a store of version 2; no prefix is as short."""
FORMAT_FIELD: Final = b"format"
"""The field of a bucket's hash of models that has the store's format, from version 3 on; no prefix is as short."""
MODELS: Final = bytes(PREFIX_BYTES)
"""Follows a bucket's tag in the key of its models; no model has this prefix."""
_REST = MODELS + b"rest "
"""Follows a bucket's tag in the key of a record's second part, before the record's own key."""
_COMMON_TAGS = 16
"""How many of the smallest tags are tried to find a format that is lost. The first one is used by every store."""


@dataclass(frozen=True)
class Address:
    """A parsed URL; ``public`` is the URL without its password."""

    public: str
    is_cluster: bool
    service: str | None
    """The name by which Sentinels know the primary; None if no Sentinel is asked."""
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    db: int
    name: str
    buckets: int | None
    """None if the URL does not set it: then the store decides, or :data:`DEFAULT_BUCKETS` for a new store."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a URL. Raises :class:`StoreError` with the problem, without the password."""
        public = masked(url)
        try:
            return cls._parse(url, public)
        except ValueError as error:
            raise StoreError(f"{public}: {error}") from None

    @classmethod
    def _parse(cls, url: str, public: str) -> Address:
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES or not rest:
            raise ValueError("not of the form redis://HOST:PORT")
        kind, tls = _SCHEMES[scheme]
        is_cluster, by_sentinel = kind == "+cluster", kind == "+sentinel"
        # Parsed here because the standard library does not accept a list of hosts.
        parts = urlsplit(f"redis://{rest}")
        credentials, _, hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        name, buckets = query.pop("name", "clips"), query.pop("buckets", None)
        if query:
            raise ValueError(f"?{next(iter(query))}= is unknown; only ?name= and ?buckets= are allowed")
        if not _NAME.fullmatch(name):
            raise ValueError("?name= takes 1 to 64 of A-Z, a-z, 0-9 and ._:-")
        if parts.fragment or (is_cluster and parts.path not in {"", "/"}):
            raise ValueError("only ?name= and ?buckets= may follow the hosts, because a cluster has only one database")
        service, _, db = parts.path.strip("/").partition("/") if by_sentinel else ("", "", parts.path.strip("/"))
        if by_sentinel and not service:
            raise ValueError("the name of the service must follow the Sentinels, as in redis+sentinel://HOST/SERVICE")
        return cls(
            public=public,
            is_cluster=is_cluster,
            service=unquote(service) or None,
            tls=tls,
            hosts=_hosts(hosts, several=bool(kind), default_port=SENTINEL_PORT if by_sentinel else DEFAULT_PORT),
            user=unquote(user) or None,
            password=unquote(password) or None,
            db=_number("/DB", db or "0", 0, 1 << 20),
            name=name,
            buckets=None if buckets is None else _number("?buckets=", buckets, 1, SLOTS),
        )


class Buckets:
    """The keys of the store ``name``, in ``count`` buckets, its clips distributed by a ``salt`` of 64 bits.

    ``version``: of the store's format. ``in_parts``: whether a record may have a second part.
    """

    def __init__(
        self, name: str, count: int, salt: int = UNSALTED, *, version: int = EARLIER, in_parts: bool = False
    ) -> None:
        tags = _tags(count)
        self.name = name.encode()
        self.count = count
        self.salt = salt
        self.version = version
        self.in_parts = in_parts
        self.slots = [key_slot(tag) for tag in tags]
        self.heads = [b"%s{%s}" % (self.name, tag) for tag in tags]
        """The prefix of a bucket's keys."""
        self.numbers = {head: number for number, head in enumerate(self.heads)}

    def of(self, key: bytes) -> int:
        """Return the bucket of a record's key; it depends only on the id, so that all models' records are together."""
        return xxh3_64_intdigest(key[PREFIX_BYTES:], self.salt) % self.count

    @property
    def format(self) -> bytes:
        """The value under the store's name."""
        salt = b"" if self.salt == UNSALTED else b" salt %016x" % self.salt
        parts = b" parts" if self.in_parts else b""
        return b"clip embeddings %d buckets %d%s%s" % (self.version, self.count, salt, parts)

    @property
    def own_fields(self) -> dict[bytes, bytes]:
        """The fields, besides models, of each bucket's hash: what a lost format is found by."""
        if self.version > EARLIER:
            return {FORMAT_FIELD: self.format}
        return {} if self.salt == UNSALTED else {SALT_FIELD: b"%016x" % self.salt}

    def full(self, key: bytes) -> bytes:
        """Return a record's key on the servers."""
        return self.heads[self.of(key)] + key

    def rest(self, number: int, key: bytes) -> bytes:
        """Return the key of the second part of a record of a bucket."""
        return self.heads[number] + _REST + key

    def record_key(self, full: bytes) -> bytes | None:
        """Return the record key of a server's key, None if it is not a record of this store."""
        head, brace, key = full.partition(b"}")
        return key if head + brace in self.numbers and not key.startswith(MODELS) else None

    def models(self, number: int) -> bytes:
        """Return the key of a bucket's hash of models."""
        return self.heads[number] + MODELS


def buckets_of(stored: bytes, address: Address) -> Buckets:
    """Return a store's buckets. Raises :class:`StoreError` if the URL has another number of them."""
    found = _FORMAT.fullmatch(stored.decode(errors="replace"))
    if found is None:
        raise StoreError(f"{address.public}: the key {address.name!r} is not a store of this release")
    count = int(found["buckets"])
    if not 1 <= count <= SLOTS:
        raise StoreError(f"{address.public}: a store of {count} buckets")
    if address.buckets not in {None, count}:
        raise StoreError(f"{address.public}: the store was created with {count} buckets, which cannot be changed")
    salt = int(found["salt"], 16) if found["salt"] else UNSALTED
    version = EARLIER if found["earlier"] else VERSION
    return Buckets(address.name, count, salt, version=version, in_parts=bool(found["parts"]))


def common_models(name: str) -> list[tuple[int, bytes]]:
    """Return, with their slots, keys of hashes of models that a store has whatever the number of its buckets is."""
    tags = [b"%d" % number for number in range(_COMMON_TAGS)]
    return [(key_slot(tag), b"%s{%s}%s" % (name.encode(), tag, MODELS)) for tag in tags]


def _hosts(text: str, *, several: bool, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = []
    for each in text.split(","):
        parts = urlsplit(f"//{each}")
        if not parts.hostname:
            raise ValueError("a host is missing")
        hosts.append((parts.hostname, default_port if parts.port is None else parts.port))
    if len(hosts) > 1 and not several:
        raise ValueError("several hosts need redis+cluster:// or redis+sentinel://")
    return tuple(hosts)


def _number(what: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8 and least <= int(text) <= most):  # noqa: PLR2004
        raise ValueError(f"{what} must be a number from {least} to {most}, not {text[:20]!r}")
    return int(text)


@lru_cache(maxsize=8)
def _tags(count: int) -> tuple[bytes, ...]:
    """Return the smallest numbers such that each of ``count`` equal ranges of slots has the slot of one of them."""
    tags: dict[int, bytes] = {}
    number = 0
    while len(tags) < count:
        tag = b"%d" % number
        tags.setdefault(key_slot(tag) * count // SLOTS, tag)
        number += 1
    return tuple(tags[each] for each in range(count))
