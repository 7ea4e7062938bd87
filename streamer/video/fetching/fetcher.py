"""From a URI to a readable local file, with an allow-list, a byte limit and time limits.

Uploads name their own source, so the URI is untrusted. It is parsed once (:mod:`.uris`), checked against the allowed
prefixes, and passed in parts to the module that opens it:

- ``file:`` is opened in place (:mod:`.local`); links and ``..`` cannot lead out of an allowed folder.
- ``http:`` and ``https:`` are downloaded (:mod:`.web`) only from public addresses and allowed networks
  (:mod:`.network`); a redirect is followed only if its target would be allowed as a URI.
- ``s3:`` and ``gs:`` are downloaded from the stores configured in the environment (:mod:`.object_stores`).

Credentials in the URI, fsspec's chained URLs (``zip://*::http://...``) and every other scheme are refused. fsspec never
chooses a filesystem from a URI.

A download goes to a file of its own in the temporary folder, and all of them together have a budget of bytes
(:mod:`.downloads`). Callers get a path below ``/proc``, valid for every process of this user: what is decoded is
exactly the file that was checked or downloaded here.

How an attempt at a clip is repeated: :func:`retries` after an error of the clip or its source,
:class:`~streamer.shortages.Shortages` while this machine lacks disk space, descriptors, processes or memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tenacity
from fsspec.asyn import get_loop
from yarl import URL

from streamer.events import Reason
from streamer.machine import Lack, MachineError, machine_error, missing_descriptors
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import Sink, failed
from streamer.video.fetching.downloads import UNLIMITED, Budget, Claim, Folder, NoRoomError
from streamer.video.fetching.local import is_broad, opened, path_of
from streamer.video.fetching.network import Networks
from streamer.video.fetching.object_stores import GcsObjects, S3Objects
from streamer.video.fetching.uris import Prefixes, StoredObject, origin_of, parse
from streamer.video.fetching.web import WebSources

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from streamer.video.fetching.uris import Source


class Fetcher:
    """Makes allowed sources readable as local files. Safe to use from several threads at once.

    ``allowed``: URI prefixes, see :mod:`streamer.video.fetching.uris`. ``allowed_networks``: networks (CIDR) of http(s)
    sources in addition to public addresses. ``max_bytes``: largest source. ``timeout``: seconds for downloading one
    source, from the first connection to the last byte. ``first_byte_timeout``: seconds until a source responds, and the
    longest pause afterwards. ``download_bytes``, ``idle`` and ``waited``: the budget of all downloads,
    :class:`.downloads.Budget`. Raises ValueError, which names the prefix or network, if one cannot be used.
    """

    def __init__(
        self,
        allowed: Sequence[str],
        *,
        allowed_networks: Sequence[str] = (),
        max_bytes: int,
        timeout: float,
        first_byte_timeout: float = 15.0,
        download_bytes: int = UNLIMITED,
        idle: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        waited: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._budget = Budget(download_bytes, max_bytes, idle=idle, waited=waited)
        with contextlib.suppress(OSError):  # the first download needs it, and waits for what is lacking
            Folder.of_process()
        # Started here, since fsspec (2026.9) keeps a loop whose thread could not be started, and waits for it for ever.
        self._loop = get_loop()  # fsspec's, which all filesystems share
        self._timeout = timeout
        self._prefixes = Prefixes(allowed)
        self._web = WebSources(self._prefixes, Networks(allowed_networks), patience=first_byte_timeout)
        self._stores: dict[str, S3Objects | GcsObjects] = {}
        schemes = {prefix.scheme for prefix in self._prefixes.objects}
        if "s3" in schemes:
            self._stores["s3"] = S3Objects(patience=first_byte_timeout)
        if "gs" in schemes:
            try:
                self._stores["gs"] = GcsObjects(patience=first_byte_timeout)
            except ImportError:
                raise ValueError("gs: prefixes need the extra 'gs': pip install 'cliprerank-streamer[gs]'") from None

    def broad_folders(self) -> list[Path]:
        """Return the allowed folders in which files lie that no upload should name."""
        return [folder for folder in self._prefixes.folders if is_broad(folder)]

    def origin(self, uri: str) -> str:
        """Return where ``uri`` is fetched from, the same for every spelling of it; nothing is accessed.

        Raises :class:`ClipError` URI_REFUSED for a URI that :meth:`fetch` refuses by its text.
        """
        source = self._parsed(uri)
        self._check(source)
        return origin_of(source)

    @contextlib.contextmanager
    def fetch(self, uri: str) -> Iterator[Path]:
        """Provide the source of ``uri`` as a local file inside the block.

        For ``file:`` this is the file itself, which must not be written. Raises :class:`ClipError`: URI_REFUSED,
        NOT_FOUND, CLIP_TOO_LARGE or FETCH_FAILED; :class:`MachineError` if this machine has no room for the file, or
        no descriptor or thread for fetching it.
        """
        source = self._parsed(uri)
        with contextlib.ExitStack() as place:
            try:
                path = self._readable(source, place)
            except Exception as error:
                lack = _lack(error)
                if lack is None:
                    raise
                raise lack from error
            yield path

    def _parsed(self, uri: str) -> Source:
        try:
            return parse(uri)
        except ValueError as error:
            raise ClipError(Reason.URI_REFUSED, str(error)) from None

    def _check(self, source: Source) -> None:
        """Compare a source with the allowed prefixes; a file's real path is compared when it is opened."""
        match source:
            case URL():
                self._prefixes.check_url(source)
            case StoredObject():
                self._prefixes.check_object(source)

    def _readable(self, source: Source, place: contextlib.ExitStack) -> Path:
        """Open or download a source; what is opened is closed with ``place``."""
        if isinstance(source, Path):
            return place.enter_context(opened(source, self._prefixes.folders, self._max_bytes))
        download = self._downloader(source)
        claim = place.enter_context(Claim(self._budget, origin_of(source)))
        while True:
            try:
                return path_of(self._downloaded(download, claim, place))
            except NoRoomError as full:
                claim.wait(full.wanted)

    def _downloaded(
        self, download: Callable[[Sink], Awaitable[None]], claim: Claim, place: contextlib.ExitStack
    ) -> int:
        """Download to a file, return its descriptor. Raises :class:`NoRoomError` if the budget does not suffice now."""
        with contextlib.ExitStack() as opened_here:
            try:
                path, file = opened_here.enter_context(Folder.of_process().file())
                sink = Sink(path, file, self._max_bytes, claim)
                asyncio.run_coroutine_threadsafe(self._within_time(download(sink)), self._loop).result()
                sink.detach()  # flushes it; the file stays open
            except OSError as error:
                raise MachineError(Lack.DISK, f"downloads: {error.strerror or error}") from error
            claim.keep(sink.size)
            place.push(opened_here.pop_all())
            return file.fileno()

    def _downloader(self, source: URL | StoredObject) -> Callable[[Sink], Awaitable[None]]:
        """Check a source before any client sees it, and return its download function."""
        self._check(source)
        if isinstance(source, URL):
            return partial(self._web.download, source)
        return partial(self._stores[source.scheme].download, source)

    async def _within_time(self, transfer: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await transfer
        except TimeoutError as error:
            raise failed(f"not complete after {self._timeout:g} s") from error


def _lack(error: Exception) -> MachineError | None:
    """Return the shortage of this machine that caused a failure; None if the failure is the source's own."""
    if isinstance(error, MachineError):
        # It was raised for the temporary file as a lack of disk space; its cause tells which resource it really was.
        return machine_error(error.__cause__ or error) or error
    if isinstance(error, ClipError) and error.retry is not Retry.FOR_A_WHILE:
        return None
    found = machine_error(error)
    if found is None and isinstance(error, ClipError):
        # If no descriptor is left for a lookup, libc reports that no name server responds.
        found = missing_descriptors()
    return found


def retries(seconds: float, before: Callable[[], None]) -> tenacity.Retrying:
    """Return the retry policy for one clip, with exponential backoff.

    An error of the source is retried for ``seconds``, an error that may be temporary once, any other not at all.
    ``before`` is called before each retry. The last attempt's :class:`ClipError` is raised.
    """
    out_of_time = tenacity.stop_before_delay(seconds)
    return tenacity.Retrying(
        retry=_is_worth_another_attempt,
        wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=15),
        stop=lambda state: _retry_of(state) is Retry.FOR_A_WHILE and out_of_time(state),
        before_sleep=lambda _state: before(),
        reraise=True,
    )


def _retry_of(state: tenacity.RetryCallState) -> Retry:
    error = state.outcome.exception() if state.outcome else None
    return error.retry if isinstance(error, ClipError) else Retry.NEVER


def _is_worth_another_attempt(state: tenacity.RetryCallState) -> bool:
    retry = _retry_of(state)
    return retry is Retry.FOR_A_WHILE or (retry is Retry.ONCE and state.attempt_number == 1)
