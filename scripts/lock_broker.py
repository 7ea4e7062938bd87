#!/usr/bin/env python3
"""Write streamer/local_kafka/broker.lock: every jar of the local Kafka with its SHA-256.

Usage: ``scripts/lock_broker.py VERSION``, such as 4.4.0. Needs ``mvn`` and the network, which users of the
lock do not: Maven resolves the broker's runtime dependencies as its authors published them, and what it
downloads (checked against the repository's own checksums) is hashed here.
"""

import argparse
import hashlib
import subprocess
import tempfile
from pathlib import Path

LOCK = Path(__file__).parent.parent / "streamer" / "local_kafka" / "broker.lock"

HEADER = "# The jars of the local Kafka with their SHA-256 hashes. Written by scripts/lock_broker.py.\n"


def resolve(*roots: str) -> dict[str, str]:
    """Download ``group:artifact:version`` roots and what they need to run; returns each jar's SHA-256."""
    dependencies = ""
    for root in roots:
        group, artifact, version = root.split(":")
        dependencies += (
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
        )
    pom = (
        "<project><modelVersion>4.0.0</modelVersion><groupId>streamer</groupId><artifactId>broker</artifactId>"
        f"<version>0</version><packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(pom)
        subprocess.run(  # noqa: S603 - the arguments are this script's own
            [
                *("mvn", "--quiet", "--batch-mode", "--strict-checksums", "--file", str(folder / "pom.xml")),
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                "-Dmdep.useRepositoryLayout=true",
                f"-DoutputDirectory={folder}",
            ],
            check=True,
        )
        hashes = {}
        for jar in sorted(folder.rglob("*.jar")):
            *group_parts, artifact, version = jar.relative_to(folder).parent.parts
            coordinates = f"{'.'.join(group_parts)}:{artifact}:{version}"
            hashes[coordinates] = hashlib.sha256(jar.read_bytes()).hexdigest()
        return hashes


def main() -> None:
    """Resolve the broker, then once more with its log, and write the lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="of Apache Kafka")
    kafka = f"org.apache.kafka:kafka_2.13:{parser.parse_args().version}"
    # Kafka's own distribution adds this binding of slf4j; without it the broker logs nothing at all. Its
    # version has to be that of the log4j-core which the broker depends on.
    core = next(name for name in resolve(kafka) if ":log4j-core:" in name)
    hashes = resolve(kafka, core.replace("log4j-core", "log4j-slf4j-impl"))
    LOCK.write_text(HEADER + "".join(f"{name} sha256:{digest}\n" for name, digest in hashes.items()))
    print(f"{LOCK}: {len(hashes)} jars")  # noqa: T201 - a script's report


if __name__ == "__main__":
    main()
