"""http(s) sources, through fsspec's HTTP filesystem.

The checks are inside the HTTP client, before each request, so that they apply to the request as it is really sent,
after all parsing. A redirect is followed only if its target would be allowed as a URI, and connections are made only to
addresses allowed by :mod:`streamer.video.fetching.network`. The environment (proxies, .netrc) is ignored, and nothing
is kept from one source to the next: no cookies, and no connections, on which a server could send a response to a later
request in advance.

The body is not decoded. A response that is compressed although no compression was requested is refused, because a
compressed body could decompress without bound. A dropped transfer is resumed if the server can confirm that the source
is unchanged (RFC 9110, If-Range): by a strong ETag, or a Last-Modified that was a minute old at the time.
"""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from fsspec.implementations.http import HTTPFileSystem

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import UNREADABLE, failed, no_room, resuming, unreadable
from streamer.video.fetching.network import CheckedResolver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from streamer.video.fetching.download import Sink
    from streamer.video.fetching.network import Networks
    from streamer.video.fetching.uris import Prefixes

_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_TRY_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_CHANGED = {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
_COMPRESSED = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}
_SETTLED_S = 60
"""A Last-Modified this much older than the response identifies the version (RFC 9110, 8.8.2.2)."""


class WebSources:
    """Downloads http(s) URLs in ``prefixes`` from hosts in ``networks``.

    ``patience``: seconds that a server may send nothing, from the first connection on.
    """

    def __init__(self, prefixes: Prefixes, networks: Networks, *, patience: float) -> None:
        self.prefixes = prefixes
        self.patience = patience
        self._networks = networks
        self.files = HTTPFileSystem(skip_instance_cache=True, encoded=True, get_client=self._client)

    async def download(self, url: URL, sink: Sink) -> None:
        """Download the body. Raises :class:`ClipError`."""
        transfer = _Transfer(self, url, sink)
        await resuming(transfer.attempt, sink, lambda: transfer.version is not None)

    async def _client(self, **_: Any) -> aiohttp.ClientSession:
        """Make the client; called in the event loop that it works in."""
        connector = aiohttp.TCPConnector(
            limit=0,  # callers are bounded, and a slow source must not delay the others
            force_close=True,
            ttl_dns_cache=0,
            resolver=CheckedResolver(self._networks),
            socket_factory=self._networks.open_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.patience, sock_read=self.patience),
        )


class _Transfer:
    """The download of one source, possibly over several connections.

    ``version``: the source's version as a value of If-Range; None if the server provides none.
    """

    def __init__(self, sources: WebSources, url: URL, sink: Sink) -> None:
        self._sources = sources
        self._url = url
        self._sink = sink
        self.version: str | None = None

    async def attempt(self) -> None:
        wanted = {}
        if self._sink.size and self.version is not None:
            wanted = {"Range": f"bytes={self._sink.size}-", "If-Range": self.version}
        try:
            await self._sources.files._get_file(str(self._url), self._sink, headers=wanted, middlewares=(self._guard,))
        except FileNotFoundError:  # fsspec's exception for a 404
            raise ClipError(Reason.NOT_FOUND, "http 404") from None
        except aiohttp.ClientResponseError as error:
            raise _http_failure(error) from error
        except aiohttp.RedirectClientError as error:
            raise ClipError(Reason.URI_REFUSED, "redirected to something other than an http(s) URL") from error
        except aiohttp.InvalidURL as error:  # its message contains the URL
            raise ClipError(Reason.URI_REFUSED, "the HTTP client rejects the URL") from error
        except TimeoutError as error:
            raise failed(f"nothing received for {self._sources.patience:g} s") from error
        except aiohttp.ClientError as error:
            raise failed(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise no_room(error) from error
        except UNREADABLE as error:
            raise unreadable(error) from error

    async def _guard(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Check each request, including redirected ones, and the header of each response."""
        self._sources.prefixes.check_url(request.url)
        # From the name lookup to the end of the header, which may arrive slowly too.
        async with asyncio.timeout(self._sources.patience):
            response = await handler(request)
        try:
            self._check_answer(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        headers = response.headers
        match response.status:
            case HTTPStatus.OK:
                if self._sink.size:
                    self._sink.restart()
            case HTTPStatus.PARTIAL_CONTENT if self._continues(headers):
                pass
            case status if status in _CHANGED and self._sink.size:
                raise failed(f"http {status} when resuming a dropped transfer")
            case status if status >= HTTPStatus.BAD_REQUEST or "Location" in headers:
                return  # handled by fsspec and aiohttp
            case status:
                raise failed(f"http {status} is not a response with a body", Retry.NEVER)
        coding = headers.get("Content-Encoding", "").strip().lower()
        if coding in _COMPRESSED:
            raise failed(f"the body is compressed ({coding}) although no compression was requested", Retry.NEVER)
        self._sink.announce(response.content_length or 0)
        self.version = _version(headers)

    def _continues(self, headers: Mapping[str, str]) -> bool:
        # Compared as text: a server may send any number of digits.
        return self._sink.size > 0 and headers.get("Content-Range", "").startswith(f"bytes {self._sink.size}-")


def _version(headers: Mapping[str, str]) -> str | None:
    if headers.get("Accept-Ranges", "bytes").strip().lower() != "bytes":
        return None
    tag = headers.get("ETag")
    if tag is not None:
        return tag if tag.startswith('"') else None
    try:
        changed = headers["Last-Modified"]
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(changed)
    except (KeyError, ValueError, OverflowError, TypeError):  # TypeError: only one of the two names its zone
        return None
    return changed if age.total_seconds() >= _SETTLED_S else None


def _http_failure(error: aiohttp.ClientResponseError) -> ClipError:
    if isinstance(error.__cause__, HttpProcessingError):  # reported with the status 400, which the server did not send
        return failed("the response is not valid HTTP", Retry.ONCE)
    status = error.status
    words = "too many redirects" if isinstance(error, aiohttp.TooManyRedirects) else _phrase(status)
    transient = status in _TRY_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    told = failed(f"http {status}: {words}", Retry.FOR_A_WHILE if transient else Retry.NEVER)
    return ClipError(Reason.NOT_FOUND, told.detail) if status in _GONE else told


def _phrase(status: int) -> str:
    """Return the standard phrase of a status, because the server's own may contain the request."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
