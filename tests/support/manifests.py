"""What lies in deploy/kubernetes, as objects; no cluster and no kustomize is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
EXAMPLE = DEPLOY / "kubernetes" / "overlays" / "example"

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def variables(path: Path) -> dict[str, str]:
    """Read a file of variables, one a line."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line)


def objects(folder: Path) -> list[dict[str, Any]]:
    """Return what a kustomization lists and generates, without merging what an overlay changes."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        found += objects(path) if path.is_dir() else [each for each in yaml.safe_load_all(path.read_text()) if each]
    for generator in kustomization["configMapGenerator"]:
        data: dict[str, str] = {}
        for path in generator["envs"]:
            data |= variables(folder / path)
        if generator.get("behavior") == "merge":
            [merged] = [each for each in found if each["metadata"]["name"] == generator["name"] and "data" in each]
            merged["data"] |= data
        else:
            metadata = {"name": generator["name"]}
            found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return found


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Go through the pod templates: the object's name, the pod, its container."""
    for each in found:
        if "template" in each.get("spec", {}):
            pod = each["spec"]["template"]["spec"]
            [container] = pod["containers"]
            yield each["metadata"]["name"], pod, container


def size(quantity: str) -> int:
    """Return the bytes of a quantity such as 8Gi."""
    return int(quantity[:-2]) * UNITS[quantity[-2:]]
