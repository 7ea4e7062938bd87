"""`make pin-images`: digests come from a registry's answer, and all of them or none are written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ["KAFKA_IMAGE", "VALKEY_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE", "PYTHON_IMAGE"]
SKOPEO = """#!/bin/sh
[ "$1 $2 $3 $4" = "inspect --no-tags --format {{.Digest}}" ] || exit 9
printf 'sha256:%s\\n' "$(printf %s "${5#docker://}" | sha256sum | cut -d ' ' -f 1)"
"""
DOCKER = """#!/bin/sh
[ "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{.Manifest.Digest}}" ] || exit 9
printf 'sha256:%s\\n' "$(printf %s "$6" | sha256sum | cut -d ' ' -f 1)"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make what the script needs of a checkout, and a folder of programs for it."""
    for name in ("deploy", "scripts", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "deploy" / "images.txt", tmp_path / "deploy")
    shutil.copy(ROOT / "scripts" / "pin_images.py", tmp_path / "scripts")
    for needed in ("sh", "sha256sum", "cut"):
        found = shutil.which(needed)
        assert found is not None
        (tmp_path / "bin" / needed).symlink_to(found)
    return tmp_path


def pin(checkout: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    for name, text in tools.items():
        (checkout / "bin" / name).write_text(text)
        (checkout / "bin" / name).chmod(0o755)
    script = checkout / "scripts" / "pin_images.py"
    environment = {"PATH": str(checkout / "bin")}
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tools", [{"skopeo": SKOPEO}, {"docker": DOCKER}], ids=["skopeo", "docker"])
def test_each_tag_gets_the_digest_that_the_registry_says_and_other_lines_stay(
    checkout: Path, tools: dict[str, str]
) -> None:
    written = checkout / "deploy" / ".env"
    written.write_text("STREAMER_MODEL=demo\nKAFKA_IMAGE=apache/kafka:3.0.0@sha256:old\n")
    done = pin(checkout, **tools)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = written.read_text().splitlines()
    assert first == "STREAMER_MODEL=demo"
    assert [line.partition("=")[0] for line in lines] == NAMES
    for line in lines:
        image, digest = line.partition("=")[2].split("@sha256:")
        asked = subprocess.run(["sha256sum"], input=image, capture_output=True, text=True, check=True).stdout
        assert digest == asked.split()[0]
    assert done.stdout.splitlines() == lines


FAILING: dict[str, tuple[dict[str, str], str]] = {
    "the registry is not there": ({"skopeo": "#!/bin/sh\necho no route to host >&2\nexit 1\n"}, "no route to host"),
    "an answer that is no digest": ({"skopeo": "#!/bin/sh\necho sha256:abc\n"}, "gives no digest: 'sha256:abc'"),
    "an answer of control characters": ({"skopeo": "#!/bin/sh\nprintf '\\033[2J'\n"}, r"gives no digest: '\x1b[2J'"),
    "one image is unknown": ({"skopeo": SKOPEO.replace("printf", 'case "$5" in *grafana*) exit 1 ;; esac\nprintf', 1)},
                             "grafana/grafana:12.1.1: skopeo gives no digest"),
    "no tool": ({}, "none of skopeo, docker is on the PATH"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_without_every_digest_nothing_is_written(checkout: Path, case: str) -> None:
    tools, told = FAILING[case]
    written = checkout / "deploy" / ".env"
    written.write_text("KAFKA_IMAGE=apache/kafka:3.0.0@sha256:old\n")
    done = pin(checkout, **tools)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert written.read_text() == "KAFKA_IMAGE=apache/kafka:3.0.0@sha256:old\n"


def test_a_line_that_is_no_image_is_named(checkout: Path) -> None:
    (checkout / "deploy" / "images.txt").write_text("KAFKA_IMAGE=apache/kafka\n")
    done = pin(checkout, skopeo=SKOPEO)
    assert "not NAME_IMAGE=repository:tag: 'KAFKA_IMAGE=apache/kafka'" in done.stderr
    assert not (checkout / "deploy" / ".env").exists()
