"""From a URI to a local file, under an allow-list, a byte limit and a time limit.

Uploads name their own source, so the URI is hostile until shown otherwise. What is allowed is a list of
prefixes, each a folder or a single file: ``file:/clips``, ``https://cdn.example.com/clips/``. They are
compared by component, never as text:

- ``file:`` by real paths: the source, with ``..`` and symbolic links resolved, must lie in the prefix's own
  real path. Only regular files are opened.
- ``http:`` and ``https:`` by scheme, host and port, which must be equal, and by path segments. The check sits
  inside the HTTP client, before each request, so that it sees what is really asked for after all parsing, and
  a redirect is followed only to where the URI itself could have pointed.

A query is part of an http(s) source (signed URLs) but never of a prefix. Credentials in the URI, fsspec's
chained URLs (``zip://*::http://...``) and every other scheme are refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _typeshed import ReadableBuffer

_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_TRY_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_LASTING_ERRNO = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


class Fetcher:
    """Makes allowed sources readable as local files. Safe to use from several threads at once.

    ``allowed``: URI prefixes, see the module's text; ValueError names one that cannot be used. ``max_bytes``:
    largest source. ``timeout``: seconds for one http(s) source from the first connection to the last byte.
    """

    def __init__(self, allowed: Sequence[str], *, max_bytes: int, timeout: float) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._folders: list[Path] = []
        self._origins: list[URL] = []
        for prefix in allowed:
            try:
                source = _parse(prefix)
            except ValueError as error:
                raise ValueError(f"{prefix!r} is no URI prefix: {error}") from None
            if isinstance(source, URL):
                if source.raw_query_string:
                    raise ValueError(f"{prefix!r} is no URI prefix: it has a query")
                self._origins.append(source)
            else:
                self._folders.append(source)
        self._http = HTTPFileSystem(
            skip_instance_cache=True,
            client_kwargs={
                "timeout": aiohttp.ClientTimeout(total=timeout),
                "headers": {"Accept-Encoding": "identity"},
                "middlewares": (self._guard,),
            },
        )

    @contextlib.contextmanager
    def fetch(self, uri: str) -> Iterator[Path]:
        """Give the source of ``uri`` as a local file for the length of the block.

        For ``file:`` that is the file itself, by its real path, which must not be written to; for http(s) a
        temporary file, removed afterwards. Raises :class:`ClipError`: URI_REFUSED, NOT_FOUND, CLIP_TOO_LARGE
        or FETCH_FAILED.
        """
        try:
            source = _parse(uri)
        except ValueError as error:
            raise ClipError(Reason.URI_REFUSED, str(error)) from None
        if not isinstance(source, URL):
            yield self._local(source)
            return
        self._check(source)  # before fsspec has seen it at all
        try:
            folder = tempfile.TemporaryDirectory(prefix="streamer-")
        except OSError as error:
            raise _os_failure(error) from error
        with folder:
            path = Path(folder.name, "clip")
            self._download(source, path)
            yield path

    def _local(self, path: Path) -> Path:
        try:
            real = Path(os.path.realpath(path))
            # An allowed folder may itself be a link that is moved on, so it is resolved each time.
            if not any(real.is_relative_to(os.path.realpath(folder)) for folder in self._folders):
                raise ClipError(Reason.URI_REFUSED, "the file is outside every allowed prefix")
            status = real.stat()
        except OSError as error:
            raise _os_failure(error) from error
        if not stat.S_ISREG(status.st_mode):
            raise ClipError(Reason.URI_REFUSED, "not a regular file")
        if status.st_size > self._max_bytes:
            raise self._too_large(status.st_size)
        return real

    def _download(self, source: URL, path: Path) -> None:
        try:
            with _BoundedWriter(path, self._max_bytes) as sink:
                self._http.get_file(str(source), sink)
        except _FullError:
            raise self._too_large() from None
        except FileNotFoundError:  # fsspec's word for a 404
            raise ClipError(Reason.NOT_FOUND, "http 404") from None
        except aiohttp.ClientResponseError as error:
            raise _http_failure(error) from error
        except aiohttp.RedirectClientError as error:
            raise ClipError(Reason.URI_REFUSED, "redirected to something that is no http(s) URL") from error
        except TimeoutError as error:
            raise ClipError(
                Reason.FETCH_FAILED, f"not complete after {self._timeout:g} s", Retry.FOR_A_WHILE
            ) from error
        except aiohttp.ClientError as error:
            raise ClipError(Reason.FETCH_FAILED, f"{type(error).__name__}: {error}", Retry.FOR_A_WHILE) from error
        except OSError as error:
            raise _os_failure(error) from error

    async def _guard(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Check each request, the first and those that redirects ask for, and the size that is announced."""
        self._check(request.url)
        response = await handler(request)
        if response.ok and (response.content_length or 0) > self._max_bytes:
            response.close()
            raise self._too_large(response.content_length)
        return response

    def _check(self, url: URL) -> None:
        if not any(_is_within(url, origin) for origin in self._origins):
            raise ClipError(Reason.URI_REFUSED, f"{url.origin()} or its path is outside every allowed prefix")

    def _too_large(self, size: int | None = None) -> ClipError:
        found = "more" if size is None else f"{size} bytes"
        return ClipError(Reason.CLIP_TOO_LARGE, f"{found}, the limit is {self._max_bytes} bytes")


class _FullError(Exception):
    """The byte limit is reached."""


class _BoundedWriter(io.BufferedWriter):
    """A new local file that takes at most ``limit`` bytes."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._left = limit

    def write(self, chunk: ReadableBuffer, /) -> int:
        self._left -= memoryview(chunk).nbytes
        if self._left < 0:
            raise _FullError
        return super().write(chunk)


def _parse(uri: str) -> Path | URL:
    """Read a source or a prefix: an absolute path or an http(s) URL. ValueError says what is wrong."""
    if any(char < " " or char == "\x7f" for char in uri):
        raise ValueError("control characters in the URI")
    scheme, _, rest = uri.partition(":")
    match scheme.lower():
        case "file":
            return _parse_file(rest)
        case "http" | "https":
            return _parse_http(uri)
    raise ValueError("only file:, http: and https: URIs are fetched")


def _parse_file(rest: str) -> Path:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise ValueError("a file: URI names no other host")
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
    url = URL(uri)  # the parser that the HTTP client uses, so there are no two readings of one URL
    if url.host is None:
        raise ValueError("an http(s) URI needs a host")
    if url.user is not None or url.password is not None:
        raise ValueError("credentials in the URI")
    if "::" in url.raw_path_qs or url.raw_fragment:
        raise ValueError("'::' and '#' in an http(s) URI must be percent-encoded")
    # Literal dots are resolved by now; a server may also resolve those between encoded slashes.
    if not {".", ".."}.isdisjoint(re.split(r"[/\\]", unquote(url.raw_path))):
        raise ValueError("encoded '..' in the path")
    return url


def _is_within(url: URL, prefix: URL) -> bool:
    if (url.scheme, url.host, url.port) != (prefix.scheme, prefix.host, prefix.port):
        return False
    segments = prefix.raw_parts[:-1] if prefix.raw_parts[-1] == "" else prefix.raw_parts
    return url.raw_parts[: len(segments)] == segments


def _http_failure(error: aiohttp.ClientResponseError) -> ClipError:
    status = error.status
    reason = Reason.NOT_FOUND if status in _GONE else Reason.FETCH_FAILED
    transient = status in _TRY_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    words = "too many redirects" if isinstance(error, aiohttp.TooManyRedirects) else error.message
    return ClipError(reason, f"http {status}: {words}", Retry.FOR_A_WHILE if transient else Retry.NEVER)


def _os_failure(error: OSError) -> ClipError:
    words = error.strerror or str(error)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ClipError(Reason.NOT_FOUND, words)
    return ClipError(Reason.FETCH_FAILED, words, Retry.NEVER if error.errno in _LASTING_ERRNO else Retry.FOR_A_WHILE)
