"""Sources in object stores: S3 through s3fs, Google Cloud Storage through gcsfs where that is installed.

Credentials, region and endpoint come from the stores' own environment (``AWS_*``, ``~/.aws``, ``GOOGLE_*``,
``STORAGE_EMULATOR_HOST``), never from a URI. The endpoint is the operator's own setting and may well be a private
address, so :mod:`streamer.video.fetching.network` has no say here.

Neither filesystem is given a URI to parse: what was checked, a bucket and a key, is what is asked for. S3's GetObject
takes the two as they are. gcsfs wants one path, and it is looked at whether it will take that apart again into the
same two.
"""

from __future__ import annotations

import asyncio
import shutil
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.callbacks import Callback

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import failed, no_room, resuming

if TYPE_CHECKING:
    from streamer.video.fetching.download import Sink
    from streamer.video.fetching.uris import StoredObject

_CHUNK = 1 << 18
_CONNECTIONS = 1000
"""More than there are callers at a time: botocore's own default, 10, would let slow objects hold up others."""
_PASSES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "RequestTimeTooSkewed",
    "ExpiredToken", "InternalError", "ServiceUnavailable", "OperationAborted", "PreconditionFailed",
}  # fmt: skip
"""S3's codes for what may be otherwise in a while, whatever their status. PreconditionFailed: the object was
replaced while it was being read."""
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion"}


class S3Objects:
    """Downloads of S3 objects. ``patience``: seconds that the store may say nothing.

    ValueError says why the environment's configuration (a profile, an endpoint) cannot be used.
    """

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._files = fsspec.filesystem(
            "s3",
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": patience,
                "read_timeout": patience,
                "max_pool_connections": _CONNECTIONS,
                "retries": {"total_max_attempts": 1},  # the embedder tries again, and counts
            },
        )
        self._files.retries = 1
        try:
            self._files.connect()  # reads the configuration, which takes a second that no source should be charged
        except (BotoCoreError, ValueError) as error:
            raise ValueError(f"S3 cannot be used with this environment: {error}") from None

    async def download(self, source: StoredObject, sink: Sink) -> None:
        """Download an object. Raises :class:`ClipError`."""
        version: str | None = None

        async def attempt() -> None:
            nonlocal version
            wanted = {"Range": f"bytes={sink.size}-", "IfMatch": version} if sink.size else {}
            try:
                async with asyncio.timeout(self._patience):
                    answer = await self._files._call_s3("get_object", Bucket=source.bucket, Key=source.key, **wanted)
                version = answer.get("ETag")
                if sink.size and not str(answer.get("ContentRange")).startswith(f"bytes {sink.size}-"):
                    sink.restart()  # not all that speak S3 know ranges
                await self._take(answer, sink)
            except TimeoutError as error:
                raise failed(f"nothing received for {self._patience:g} s") from error
            except (BotoCoreError, aiohttp.ClientError) as error:
                # By its kind alone, since its text holds the key.
                raise failed(f"s3: {type(error).__name__}") from error
            except OSError as error:
                raise _s3_failure(error) from error

        await resuming(attempt, sink, lambda: version is not None)

    async def _take(self, answer: dict[str, Any], sink: Sink) -> None:
        body = answer["Body"]
        try:
            sink.announce(answer.get("ContentLength") or 0)
            while chunk := await body.read(_CHUNK):
                sink.write(chunk)
        finally:
            body.close()


class GcsObjects:
    """Downloads of objects of Google Cloud Storage. ``patience``: seconds that the store may say nothing.

    ImportError where gcsfs is not installed.
    """

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._files = fsspec.filesystem(
            "gs",
            skip_instance_cache=True,
            requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience, sock_read=patience),
        )

    async def download(self, source: StoredObject, sink: Sink) -> None:
        """Download an object. Raises :class:`ClipError`.

        gcsfs writes to a path and tries again by itself; the file that it writes is read back from there.
        """
        path = f"{source.bucket}/{source.key}"
        if self._files.split_path(path) != (source.bucket, source.key, None):
            raise ClipError(Reason.URI_REFUSED, "gcsfs would read another key")
        with TemporaryDirectory(prefix="streamer-") as folder:
            copy = Path(folder, "clip")
            try:
                # One range after the other: many at once would have to be bounded in memory.
                await self._files._get_file(path, str(copy), callback=_Limit(sink), concurrency=1)
            except ClipError:
                raise
            except TimeoutError as error:
                raise failed(f"nothing received for {self._patience:g} s") from error
            except FileNotFoundError:
                raise ClipError(Reason.NOT_FOUND, "gs 404") from None
            except Exception as error:
                raise _gs_failure(error) from error
            await asyncio.to_thread(_read_back, copy, sink)


def _read_back(copy: Path, sink: Sink) -> None:
    with copy.open("rb") as file:
        shutil.copyfileobj(file, sink, _CHUNK)


class _Limit(Callback):  # type: ignore[misc]  # fsspec is untyped
    """Ends a transfer that passes the sink's limit; fsspec tells it what has come."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self.value = 0  # also when gcsfs begins anew
        self._sink.announce(size or 0)

    def call(self, *_: Any, **__: Any) -> None:
        self._sink.announce(self.value)


def _s3_failure(error: OSError) -> ClipError:
    """Read what s3fs made of the store's answer, or of a local file's fault."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return no_room(error)
    code = str(answer.response.get("Error", {}).get("Code", ""))
    status = int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # Not the message, which may name the key, or whose credentials they are.
    told = failed(f"s3 {status}: {code}", Retry.FOR_A_WHILE if code in _PASSES or _may_pass(status) else Retry.NEVER)
    absent = code in _ABSENT or status == HTTPStatus.NOT_FOUND
    return ClipError(Reason.NOT_FOUND, told.detail) if absent else told


def _gs_failure(error: Exception) -> ClipError:
    """Read what gcsfs made of the store's answer: exceptions of several libraries, by what they have in common."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return failed("gs 403", Retry.NEVER)
    if isinstance(error, ValueError):  # gcsfs' word for a bad request
        return failed("gs 400", Retry.NEVER)
    status = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return failed(f"gs {status}", Retry.FOR_A_WHILE if _may_pass(status) else Retry.NEVER)
    return failed(f"gs: {type(error).__name__}")


def _may_pass(status: int) -> bool:
    later = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED}
    return status in later or status >= HTTPStatus.INTERNAL_SERVER_ERROR
