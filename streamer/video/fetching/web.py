"""http(s) sources, through fsspec's HTTP filesystem.

The checks sit inside the HTTP client, before each request, so that they see what is really asked for after all
parsing; a redirect is followed only to where the URI itself could have pointed, and connections go only where
:mod:`streamer.video.fetching.network` lets them. Nothing of the environment plays a part (proxies, .netrc), and nothing
is carried from one source to the next: no cookies, and no connections, in which a server could leave an answer to a
question that has not been asked yet.

The body is taken as it is sent. A server that compresses it although it was asked not to is refused, rather than
its bombs unpacked. A transfer that drops in the middle goes on where it ended if the server can tell that the source
is still the same (RFC 9110, If-Range): by a strong ETag, or a Last-Modified that was a minute old at the time.
"""

from __future__ import annotations

import asyncio
import re
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from fsspec.implementations.http import HTTPFileSystem

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import failed, no_room, resuming
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
"""A Last-Modified this much older than the answer tells versions apart (RFC 9110, 8.8.2.2)."""


class WebSources:
    """Downloads of http(s) URLs that lie in ``prefixes`` from hosts in ``networks``.

    ``patience``: seconds that a server may say nothing, from the first connection on.
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
            limit=0,  # callers are bounded, and a slow source must not hold up the others
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
    """One source on its way, perhaps over several connections.

    ``version``: by what the server tells that the source is the same, in the words of If-Range; None if it cannot.
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
        except FileNotFoundError:  # fsspec's word for a 404
            raise ClipError(Reason.NOT_FOUND, "http 404") from None
        except aiohttp.ClientResponseError as error:
            raise _http_failure(error) from error
        except aiohttp.RedirectClientError as error:
            raise ClipError(Reason.URI_REFUSED, "redirected to something that is no http(s) URL") from error
        except aiohttp.InvalidURL as error:  # whose words repeat the URL
            raise ClipError(Reason.URI_REFUSED, "the HTTP client takes it for no URL") from error
        except TimeoutError as error:
            raise failed(f"nothing received for {self._sources.patience:g} s") from error
        except aiohttp.ClientError as error:
            raise failed(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise no_room(error) from error

    async def _guard(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Check each request, the first and those that redirects ask for, and the head of each answer."""
        self._sources.prefixes.check_url(request.url)
        # From looking up the name to the end of the head, which may drip in too.
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
                raise failed(f"http {status} to the rest of a dropped transfer")
            case status if status >= HTTPStatus.BAD_REQUEST or "Location" in headers:
                return  # fsspec's and aiohttp's to tell
            case status:
                raise failed(f"http {status} is no answer with a body", Retry.NEVER)
        coding = headers.get("Content-Encoding", "").strip().lower()
        if coding in _COMPRESSED:
            raise failed(f"the body is compressed ({coding}), which was not asked for", Retry.NEVER)
        self._sink.announce(response.content_length or 0)
        self.version = _version(headers)

    def _continues(self, headers: Mapping[str, str]) -> bool:
        begins = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        return self._sink.size > 0 and begins is not None and int(begins[1]) == self._sink.size


def _version(headers: Mapping[str, str]) -> str | None:
    if headers.get("Accept-Ranges", "bytes").strip().lower() != "bytes":
        return None
    tag = headers.get("ETag")
    if tag is not None:
        return tag if tag.startswith('"') else None
    try:
        changed = headers["Last-Modified"]
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(changed)
    except (KeyError, ValueError, TypeError):  # TypeError: one of the two names its zone and the other does not
        return None
    return changed if age.total_seconds() >= _SETTLED_S else None


def _http_failure(error: aiohttp.ClientResponseError) -> ClipError:
    if isinstance(error.__cause__, HttpProcessingError):  # told with the status 400, which nobody sent
        return failed("the answer is no valid HTTP", Retry.ONCE)
    status = error.status
    words = "too many redirects" if isinstance(error, aiohttp.TooManyRedirects) else _phrase(status)
    transient = status in _TRY_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    told = failed(f"http {status}: {words}", Retry.FOR_A_WHILE if transient else Retry.NEVER)
    return ClipError(Reason.NOT_FOUND, told.detail) if status in _GONE else told


def _phrase(status: int) -> str:
    """Return the usual words for a status, since the server's own may repeat what it was asked for."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
