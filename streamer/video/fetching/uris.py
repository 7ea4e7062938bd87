"""Parses and checks the URIs of sources, which are untrusted text.

Each scheme is parsed once, here, and passed on in parts (a path, a URL object, a bucket and a key), so that no later
code parses the text again with another result. The allow-list consists of prefixes, each a folder or a single source.
They are compared by component, never as text:

- ``file:`` by real paths, see :mod:`streamer.video.fetching.local`.
- ``http:`` and ``https:`` by scheme, host and port, which must be equal, and by path segments. A source may have a
  query (signed URLs), a prefix may not.
- ``s3:`` and ``gs:`` by bucket, which must be equal, and by the segments of the key. A key is everything after the
  bucket, unchanged: nothing in it is decoded, and ``?versionId=`` or ``#`` are ordinary characters. Only the segments
  ``.`` and ``..`` are refused, because proxies in front of object stores may resolve them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, unquote_to_bytes

from yarl import URL

from streamer.events import Reason
from streamer.video.errors import ClipError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_AUTHORITY = re.compile(r"[^:]*://[^/?#]*")
_SCHEMES = "file:, http:, https:, s3: and gs:"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of an object store; ``key`` may be empty in a prefix."""

    scheme: Literal["s3", "gs"]
    bucket: str
    key: str


Source = Path | URL | StoredObject


class Prefixes:
    """The allowed URI prefixes. Raises ValueError, which names it, for an invalid one."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self.folders: list[Path] = []
        self.urls: list[URL] = []
        self.objects: list[StoredObject] = []
        for prefix in allowed:
            try:
                self._add(parse(prefix))
            except ValueError as error:
                raise ValueError(f"{prefix!r} is not a URI prefix: {error}") from None

    def _add(self, prefix: Source) -> None:
        match prefix:
            case Path():
                self.folders.append(prefix)
            case URL():
                if prefix.raw_query_string:
                    raise ValueError("it has a query")
                self.urls.append(prefix)
            case StoredObject():
                self.objects.append(prefix)

    def check_url(self, url: URL) -> None:
        """Raise :class:`ClipError` URI_REFUSED unless ``url`` is in a prefix."""
        try:
            _check_path(url)
        except ValueError as error:
            raise ClipError(Reason.URI_REFUSED, str(error)) from None
        if not any(_is_same_origin(url, prefix) and _begins(url.raw_parts, prefix.raw_parts) for prefix in self.urls):
            raise ClipError(Reason.URI_REFUSED, f"{url.origin()} or its path is outside every allowed prefix")

    def check_object(self, source: StoredObject) -> None:
        """Raise :class:`ClipError` URI_REFUSED unless the object is in a prefix and has a key."""
        place = f"{source.scheme}://{source.bucket}"
        parts = source.key.split("/")
        if not any(
            (source.scheme, source.bucket) == (prefix.scheme, prefix.bucket) and _begins(parts, prefix.key.split("/"))
            for prefix in self.objects
        ):
            raise ClipError(Reason.URI_REFUSED, f"{place} or the key is outside every allowed prefix")
        if not source.key:
            raise ClipError(Reason.URI_REFUSED, "the URI names a bucket but no object")


def parse(uri: str) -> Source:
    """Parse a source or a prefix. Raises ValueError, whose message contains no secrets."""
    if any(char < " " or char == "\x7f" for char in uri):
        raise ValueError("control characters in the URI")
    if any("\ud800" <= char <= "\udfff" for char in uri):
        raise ValueError("half of a surrogate pair in the URI")
    scheme, _, rest = uri.partition(":")
    match scheme.lower():
        case "file":
            return _parse_file(rest)
        case "http" | "https":
            return _parse_http(uri)
        case "s3":
            return _parse_object("s3", rest)
        case "gs":
            return _parse_object("gs", rest)
    raise ValueError(f"only {_SCHEMES} URIs are fetched")


def origin_of(source: Source) -> str:
    """Return what sources share that are fetched from the same place: scheme, host and port, or the bucket."""
    match source:
        case Path():
            return "file:"
        case URL():
            return f"{source.scheme}://{source.raw_host}:{source.port}"
        case StoredObject():
            return f"{source.scheme}://{source.bucket}"


def _parse_file(rest: str) -> Path:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise ValueError("a file: URI must not name another host")
        rest = slash + path
    if not rest.startswith("/"):
        raise ValueError("a file: URI needs an absolute path")
    if "::" in rest or "?" in rest or "#" in rest:
        raise ValueError("'::', '?' and '#' in a file: URI must be percent-encoded")
    path = os.fsdecode(unquote_to_bytes(rest))
    if "\0" in path:
        raise ValueError("a null character in the path")
    return Path(path)


def _parse_http(uri: str) -> URL:
    try:
        url = URL(uri)  # the HTTP client's parser, so that a URL is never parsed differently
    except ValueError:
        raise ValueError("an http(s) URI with an invalid host or port") from None  # its own message contains the URI
    if url.raw_host is None:
        raise ValueError("an http(s) URI needs a host")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("credentials in the URI")
    if "::" in _AUTHORITY.sub("", uri, count=1) or url.raw_fragment:
        raise ValueError("'::' and '#' in an http(s) URI must be percent-encoded")
    if _is_odd_address(url.raw_host):
        raise ValueError("an IPv4 address that is not written as four decimal numbers")
    _check_path(url)
    return url


def _check_path(url: URL) -> None:
    # Literal dots have been resolved. Servers may also resolve dots between encoded slashes or with parameters
    # ("..;x"), and decode twice.
    path = url.raw_path
    while (decoded := unquote(path)) != path:
        path = decoded
    if any(segment.partition(";")[0] in {".", ".."} for segment in re.split(r"[/\\]", path)):
        raise ValueError("'.' or '..' in the path, encoded or with parameters")


def _is_odd_address(host: str) -> bool:
    """Return whether the system treats a name as an IPv4 address in another notation: 127.1, 0x7f.1, 2130706433."""
    try:
        packed = socket.inet_aton(host)
    except OSError:
        return False
    return str(ipaddress.IPv4Address(packed)) != host


def _parse_object(scheme: Literal["s3", "gs"], rest: str) -> StoredObject:
    if not rest.startswith("//"):
        raise ValueError(f"an object URI has the form {scheme}://BUCKET/KEY")
    bucket, _, key = rest[2:].partition("/")
    if "@" in bucket:
        raise ValueError("credentials in the URI")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("invalid bucket name")
    if "::" in key:
        raise ValueError("'::' in a key: it would chain URLs")
    if not {".", ".."}.isdisjoint(key.split("/")):
        raise ValueError("'.' or '..' as a segment of the key")
    return StoredObject(scheme, bucket, key)


def _is_same_origin(url: URL, prefix: URL) -> bool:
    return (url.scheme, url.raw_host, url.port) == (prefix.scheme, prefix.raw_host, prefix.port)


def _begins(parts: Sequence[str], prefix: Sequence[str]) -> bool:
    """Return whether ``parts`` begin with ``prefix``, whose last segment is empty if it ends in a slash."""
    wanted = prefix[:-1] if prefix[-1] == "" else prefix
    return list(parts[: len(wanted)]) == list(wanted)
