"""axe-core, which finds what keeps people from reading a page: from the npm registry, pinned, fetched at its first use.

It is kept in the user's cache folder and verified before every use. npm asks the registry that its user has set.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

if TYPE_CHECKING:
    from playwright.sync_api import Page

_VERSION = "4.10.3"
_SHA256 = "0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292"
_SCRIPT = "package/axe.min.js"
_TIMEOUT_S = 180
_GRAVE = ("serious", "critical")


@cache
def source() -> str:
    """Return axe's script."""
    path = user_cache_path("cliprerank-streamer") / "tests" / f"axe-core-{_VERSION}.tgz"
    if not _is_intact(path):
        _fetch(path)
    with tarfile.open(path) as archive:
        script = archive.extractfile(_SCRIPT)
        assert script is not None
        return script.read().decode()


def grave(page: Page) -> list[str]:
    """Return the serious and the critical violations that axe finds in a page as it is shown now, with their places."""
    page.evaluate(source())
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: "
        + "; ".join(f"{node['html'][:120]} {node['failureSummary']}" for node in each["nodes"][:3])
        for each in found["violations"]
        if each["impact"] in _GRAVE
    ]


def _is_intact(path: Path) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256


def _fetch(path: Path) -> None:
    npm = shutil.which("npm")
    assert npm, "npm is not on the PATH: make tools"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Inside the folder, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as staging:
        command = [npm, "pack", f"axe-core@{_VERSION}", "--silent", "--ignore-scripts"]
        done = subprocess.run(command, cwd=staging, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        packed = Path(staging) / f"axe-core-{_VERSION}.tgz"
        assert _is_intact(packed), f"the SHA-256 of {packed.name} is not {_SHA256}"
        packed.replace(path)
