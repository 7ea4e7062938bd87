"""The jars of the local Kafka: pinned in ``broker.lock``, fetched once, verified before every use.

They are kept in the user's cache folder, under the Kafka version's name. The lock has the hash of each jar, so its
source does not matter: jgo asks Maven Central, or the mirrors that the user has set in jgo's own configuration (the
``[repositories]`` of ``jgo.conf``; one named ``central`` replaces Central).
"""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog
import tenacity

_LOCK = Path(__file__).with_name("broker.lock")
_BROKER = "org.apache.kafka:kafka_2.13"

# Central serves many small files, each over a new connection: round trips take the time, not the bytes.
_CONNECTIONS = 8
_ATTEMPTS = 3

_log = structlog.get_logger(__name__)


class BrokerError(Exception):
    """The local Kafka cannot be installed, started or used as asked; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One jar in Maven Central and its SHA-256 (hexadecimal)."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name under which it is published and kept."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(path: Path | None = None) -> list[Jar]:
    """Return the jars that a lock pins: those of the broker where no other one is named."""
    jars = []
    for line in (path or _LOCK).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            coordinates, digest = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, digest.removeprefix("sha256:")))
    return jars


def class_path() -> list[Path]:
    """Return the verified jars of the broker, fetching those that are missing (42 MB, once).

    Safe while other processes do the same: jars appear under their names whole. Raises :class:`BrokerError` if a jar
    cannot be downloaded with the right hash.
    """
    try:
        from platformdirs import user_cache_path  # noqa: PLC0415 - the broker is an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    jars = read_lock()
    version = next(jar.version for jar in jars if str(jar).startswith(f"{_BROKER}:"))
    folder = user_cache_path("cliprerank-streamer") / f"kafka-{version}"
    missing = [jar for jar in jars if not is_intact(folder / jar.filename, jar)]
    if missing:
        _log.info("downloading Kafka", version=version, jars=len(missing), folder=str(folder))
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="jars") as pool:
            list(pool.map(lambda jar: fetch(jar, folder), missing))
    return [folder / jar.filename for jar in jars]


def is_intact(path: Path, jar: Jar) -> bool:
    """Return whether a file exists and has the jar's hash."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def fetch(jar: Jar, folder: Path) -> Path:
    """Download a jar into ``folder``, replacing what is there; returns its path.

    Wrong hashes and network errors are retried. Raises :class:`BrokerError` after the last attempt.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5),
            # A requests exception is an OSError; jgo raises RuntimeError where no repository has the artifact.
            retry=tenacity.retry_if_exception_type((OSError, RuntimeError)),
            reraise=True,
        ):
            with attempt:
                _download(jar, folder)
    except (OSError, RuntimeError) as error:
        raise BrokerError(f"cannot fetch {jar} into {folder}: {error}") from error
    return folder / jar.filename


def _download(jar: Jar, folder: Path) -> None:
    try:
        from jgo.config import GlobalSettings  # noqa: PLC0415 - the broker is an optional extra
        from jgo.maven import MavenContext  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra(error) from None
    # Inside the folder, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as staging:
        maven = MavenContext(repo_cache=Path(staging))
        maven.remote_repos.update(GlobalSettings.load().repositories)
        path = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
        if not is_intact(path, jar):
            raise OSError(
                f"its SHA-256 is not the {jar.sha256} of {_LOCK.name}: the repository, a mirror or a proxy altered it"
            )
        path.replace(folder / jar.filename)


def missing_extra(error: ImportError) -> BrokerError:
    """Make the error that says how to install the local Kafka's packages."""
    return BrokerError(f'the local Kafka needs the package {error.name}: pip install "cliprerank-streamer[broker]"')
