"""The file of a bank: one line of ASCII, then MessagePack, whose hash is in the line.

    streamer match bank 1 <32 hexadecimal digits: blake2b of what follows the line, 16 bytes>
    {"model_id", "dim", "seed", "clip_ids", "lengths", "vectors", "calibration"}

The number is the format's. ``vectors`` are the clips' vectors one after the other, float16, little-endian. The first
16 digits of the hash are the bank's version. Reading executes nothing of the file, and its size is limited before it is
read.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from streamer.events import MAX_ID_BYTES, Pooling
from streamer.match.bank import LEAST_CLIPS, Bank, Calibration

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
MAX_BYTES = 256 << 20
MAX_CLIPS = 10_000
MAX_VECTORS = 100_000
"""Most vectors of a bank; each query is multiplied with all of them."""
MAX_DIM = 16_384
MAX_KNOTS = 10_000
MAX_MODEL_CHARS = 1_024
_HEAD = re.compile(rb"streamer match bank ([0-9]{1,9}) ([0-9a-f]{32})\n")
_HEAD_BYTES = 64
_DIGEST_BYTES, _VERSION_DIGITS = 16, 16
_VECTORS = np.dtype("<f2")
_LONGEST = 1.01
"""Most length of a vector: float16 has rounded its components."""

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class BankError(Exception):
    """A file is no bank that can be used; the message is one line."""


class _Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pooling: Pooling
    topics: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    percentiles: Annotated[list[_Share], msgspec.Meta(min_length=1, max_length=MAX_KNOTS)]
    probabilities: Annotated[list[_Share], msgspec.Meta(min_length=1, max_length=MAX_KNOTS)]


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    dim: Annotated[int, msgspec.Meta(ge=1, le=MAX_DIM)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    clip_ids: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES)]],
        msgspec.Meta(min_length=LEAST_CLIPS, max_length=MAX_CLIPS),
    ]
    lengths: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=MAX_VECTORS)]],
        msgspec.Meta(min_length=LEAST_CLIPS, max_length=MAX_CLIPS),
    ]
    vectors: bytes
    calibration: _Calibration | None


def written(bank: Bank, *, seed: int) -> tuple[Bank, bytes]:
    """Return a bank with its version, and its file; ``seed`` is the one with which its clips were drawn.

    Raises :class:`BankError` for a bank that could not be read again.
    """
    calibration = bank.calibration
    contents = _Contents(
        model_id=bank.model_id,
        dim=bank.matrix.shape[1],
        seed=seed,
        clip_ids=list(bank.clip_ids),
        lengths=bank.lengths.tolist(),
        vectors=bank.matrix.astype(_VECTORS).tobytes(),
        calibration=None
        if calibration is None
        else _Calibration(
            calibration.pooling, calibration.topics, list(calibration.percentiles), list(calibration.probabilities)
        ),
    )
    body = msgspec.msgpack.encode(contents)
    head = b"streamer match bank %d %s\n" % (FORMAT, _digest(body).encode())
    return _bank(body), head + body


def read_bank(path: Path, model_id: str, dim: int) -> Bank:
    """Read a bank's file, of the model ``model_id``, whose vectors have the length ``dim``.

    Raises :class:`BankError` for a file that cannot be read, is no bank, is too large, damaged, or of another model.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise BankError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BankError(f"{path}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise BankError(f"{path}: larger than {MAX_BYTES:,} bytes")
    head = _HEAD.match(content[:_HEAD_BYTES])
    if head is None:
        raise BankError(f"{path}: not a bank of streamer match fit")
    if int(head[1]) != FORMAT:
        raise BankError(f"{path}: a bank of format {int(head[1])}, this release reads {FORMAT}")
    body = content[head.end() :]
    if _digest(body) != head[2].decode():
        raise BankError(f"{path}: damaged: its content does not have the hash in its first line")
    try:
        bank = _bank(body)
    except BankError as error:
        raise BankError(f"{path}: {error}") from None
    if bank.model_id != model_id:
        raise BankError(f"{path}: a bank of the model {bank.model_id}, not of {model_id}")
    if bank.matrix.shape[1] != dim:
        raise BankError(f"{path}: vectors of {bank.matrix.shape[1]} numbers, those of the model have {dim}")
    return bank


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()


def _bank(body: bytes) -> Bank:
    try:
        contents = msgspec.msgpack.decode(body, type=_Contents)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BankError(f"not the content of a bank: {error}") from None
    lengths = np.array(contents.lengths, np.int64)
    count = int(lengths.sum())
    _check(len(contents.clip_ids) == len(lengths), "as many lengths as clips")
    _check(len(set(contents.clip_ids)) == len(lengths), "each clip once")
    _check(count <= MAX_VECTORS, f"at most {MAX_VECTORS:,} vectors")
    _check(len(contents.vectors) == count * contents.dim * _VECTORS.itemsize, "the numbers of all vectors")
    matrix = np.frombuffer(contents.vectors, _VECTORS).reshape(count, contents.dim).astype(np.float16)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float32)
    _check(bool((squares <= _LONGEST**2).all()), "vectors of length 1")  # which a NaN is not
    return Bank(
        model_id=contents.model_id,
        version=_digest(body)[:_VERSION_DIGITS],
        clip_ids=contents.clip_ids,
        lengths=lengths,
        matrix=matrix,
        calibration=None if contents.calibration is None else _calibration(contents.calibration),
    )


def _calibration(found: _Calibration) -> Calibration:
    xs, ys = found.percentiles, found.probabilities
    _check(len(xs) == len(ys), "as many probabilities as percentiles")
    _check(all(one < other for one, other in pairwise(xs)), "percentiles that increase")
    _check(all(one <= other for one, other in pairwise(ys)), "probabilities that do not decrease")
    return Calibration(found.pooling, found.topics, tuple(xs), tuple(ys))


def _check(is_met: bool, expected: str) -> None:
    if not is_met:
        raise BankError(f"not the content of a bank: expected {expected}")
