"""Sources in object stores: S3 through s3fs, Google Cloud Storage through gcsfs if it is installed.

Credentials, region and endpoint come from the stores' own environment (``AWS_*``, ``~/.aws``, ``GOOGLE_*``,
``STORAGE_EMULATOR_HOST``), never from a URI. The endpoint is set by the operator and may be a private address, so
:mod:`streamer.video.fetching.network` does not apply.

Neither filesystem parses a URI: exactly the checked bucket and key are requested. S3's GetObject takes both unchanged.
gcsfs takes one path, and it is verified that gcsfs splits it into the same two parts.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.callbacks import Callback

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import UNREADABLE, failed, no_room, resuming, unreadable
from streamer.video.fetching.downloads import NoRoomError

if TYPE_CHECKING:
    from streamer.video.fetching.download import Sink
    from streamer.video.fetching.uris import StoredObject

_CHUNK = 1 << 18
_CONNECTIONS = 1000
"""More than the number of concurrent callers: with botocore's default, 10, slow objects would delay others."""
_PASSES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "RequestTimeTooSkewed",
    "ExpiredToken", "InternalError", "ServiceUnavailable", "OperationAborted", "PreconditionFailed",
}  # fmt: skip
"""S3's codes for temporary errors, whatever their status. PreconditionFailed: the object was replaced during a read."""
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion"}


class S3Objects:
    """Downloads S3 objects. ``patience``: seconds that the store may send nothing.

    Raises ValueError if the environment's configuration (a profile, an endpoint) cannot be used.
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
                "retries": {"total_max_attempts": 1},  # the embedder retries, and counts retries
            },
        )
        self._files.retries = 1
        try:
            self._files.connect()  # reads the configuration, which takes a second
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
                    sink.restart()  # not every S3-compatible store supports ranges
                await self._take(answer, sink)
            except TimeoutError as error:
                raise failed(f"nothing received for {self._patience:g} s") from error
            except (BotoCoreError, aiohttp.ClientError) as error:
                # Only its type, because its text contains the key.
                raise failed(f"s3: {type(error).__name__}") from error
            except OSError as error:
                raise _s3_failure(error) from error
            except UNREADABLE as error:
                raise unreadable(error) from error

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
    """Downloads objects of Google Cloud Storage. ``patience``: seconds that the store may send nothing.

    Raises ImportError if gcsfs is not installed.
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

        gcsfs writes to a path and retries by itself.
        """
        path = f"{source.bucket}/{source.key}"
        if self._files.split_path(path) != (source.bucket, source.key, None):
            raise ClipError(Reason.URI_REFUSED, "gcsfs would read another key")
        try:
            # One range at a time, because concurrent ranges would need a memory bound.
            await self._files._get_file(path, str(sink.path), callback=_Limit(sink), concurrency=1)
        except (ClipError, NoRoomError):
            raise
        except TimeoutError as error:
            raise failed(f"nothing received for {self._patience:g} s") from error
        except FileNotFoundError:
            raise ClipError(Reason.NOT_FOUND, "gs 404") from None
        except Exception as error:
            raise _gs_failure(error) from error


class _Limit(Callback):  # type: ignore[misc]  # fsspec is untyped
    """Ends a transfer that exceeds the sink's limit; fsspec reports the progress to it."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def set_size(self, size: int | None) -> None:
        super().set_size(size)
        self.value = self._sink.size = 0  # also when gcsfs starts over
        self._sink.announce(size or 0)

    def call(self, *_: Any, **__: Any) -> None:
        self._sink.wrote(self.value)


def _s3_failure(error: OSError) -> ClipError:
    """Convert an error of s3fs: the store's response, or an error of the local file."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return no_room(error)
    code = str(answer.response.get("Error", {}).get("Code", ""))
    status = int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # Not the message, which may contain the key or the owner of the credentials.
    told = failed(f"s3 {status}: {code}", Retry.FOR_A_WHILE if code in _PASSES or _may_pass(status) else Retry.NEVER)
    absent = code in _ABSENT or status == HTTPStatus.NOT_FOUND
    return ClipError(Reason.NOT_FOUND, told.detail) if absent else told


def _gs_failure(error: Exception) -> ClipError:
    """Convert an error of gcsfs: exceptions of several libraries, by their common attributes."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return failed("gs 403", Retry.NEVER)
    if isinstance(error, ValueError):  # gcsfs' exception for a bad request
        return failed("gs 400", Retry.NEVER)
    status = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return failed(f"gs {status}", Retry.FOR_A_WHILE if _may_pass(status) else Retry.NEVER)
    return failed(f"gs: {type(error).__name__}")


def _may_pass(status: int) -> bool:
    later = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAUTHORIZED}
    return status in later or status >= HTTPStatus.INTERNAL_SERVER_ERROR
