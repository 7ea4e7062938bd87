"""What the front and the service say to each other: first a Setup, then for each Report an Answer and its body."""

from __future__ import annotations

from typing import Literal

import msgspec

Path = Literal["/livez", "/readyz", "/metrics"]


class Setup(msgspec.Struct, frozen=True):
    """What the front needs to know: ``user:password`` if /metrics requires them, and the files for TLS if it is on."""

    credentials: bytes | None = None
    cert: str | None = None
    key: str | None = None


class Question(msgspec.Struct, frozen=True):
    """All that an answer depends on; requests with equal questions share one answer."""

    path: Path
    admitted: bool
    """Whether the client gave the password, or none is set."""
    accept: str = ""
    accept_encoding: str = ""
    """Of /metrics: the format and the compression, as HTTP headers have them."""


class Report(msgspec.Struct, frozen=True):
    """A question, and what has happened since the one before."""

    question: Question
    refused: dict[str, int]
    """Connections that were closed without an answer, by reason."""
    warning: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """Status line and headers of an answer; the body follows as a message of its own."""

    status: str
    """Code and phrase, as in ``200 OK``."""
    headers: list[tuple[str, str]]


REFUSALS = ("crowded", "slow", "malformed")
"""Why connections are closed: newer ones needed the place; no complete request, or answer taken, in time; not HTTP."""
