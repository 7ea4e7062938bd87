"""Ask the registries for the digests of the images in deploy/images.txt, and write them into deploy/.env.

skopeo, or Docker with buildx, must be on the PATH. Other lines of deploy/.env are kept. It needs no package of ours,
and changes nothing unless every digest is known.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
SECONDS = 60
TOOLS = {
    "skopeo": ["inspect", "--no-tags", "--format", "{{{{.Digest}}}}", "docker://{}"],
    "docker": ["buildx", "imagetools", "inspect", "--format", "{{{{.Manifest.Digest}}}}", "{}"],
}
"""The arguments with which each prints the digest of a tag: that of the list of platforms where there is one."""
_LINE = re.compile(r"([A-Z]+_IMAGE)=([a-z0-9./-]+:[\w.-]+)", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def listed(path: Path) -> dict[str, str]:
    """Return the images of a file by their variables. Raises ValueError for a line that is none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{path.name}: not NAME_IMAGE=repository:tag: {line!r}")
            found[match[1]] = match[2]
    return found


def digest_of(image: str) -> str:
    """Return what the registry says is the digest of a tag. Raises ValueError, which says what is wrong."""
    tool = next((each for each in TOOLS if shutil.which(each)), None)
    if tool is None:
        raise ValueError(f"none of {', '.join(TOOLS)} is on the PATH")
    command = [tool, *(each.format(image) for each in TOOLS[tool])]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ValueError(f"{image}: {tool} has no answer after {SECONDS} s") from None
    said = asked.stdout.strip()
    if asked.returncode or not _DIGEST.fullmatch(said):
        raise ValueError(f"{image}: {tool} gives no digest: {(asked.stderr.strip() or said)[-300:]!r}")
    return said


def main() -> None:
    """Run the command."""
    target = DEPLOY / ".env"
    try:
        images = listed(DEPLOY / "images.txt")
        pinned = [f"{name}={image}@{digest_of(image)}" for name, image in images.items()]
    except ValueError as error:
        sys.exit(f"deploy/.env is as it was: {error}")
    others = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
    kept = [line for line in others if line.partition("=")[0] not in images]
    target.write_text("\n".join([*kept, *pinned, ""]), encoding="utf-8")
    sys.stdout.write("\n".join([*pinned, ""]))


if __name__ == "__main__":
    main()
