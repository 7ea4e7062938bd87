"""What lies in deploy/kubernetes, as objects; no cluster and no kustomize is needed."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
EXAMPLE = DEPLOY / "kubernetes" / "overlays" / "example"
COMPONENTS = DEPLOY / "kubernetes" / "components"

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def variables(path: Path) -> dict[str, str]:
    """Read a file of variables, one a line."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line and line[0] != "#")


def objects(folder: Path) -> list[dict[str, Any]]:
    """Return what a kustomization builds, as far as ours need it: resources, generated maps, images and patches.

    Names get no hashes, objects no namespace and no common labels. tests/unit/test_deploy.py compares it with kubectl.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        found += objects(path) if path.is_dir() else documents(path)
    for component in kustomization.get("components", []):
        found += objects(folder / component)
    for generator in kustomization.get("configMapGenerator", []):
        _generate(found, folder, generator)
    for patch in kustomization.get("patches", []):
        _patch(found, folder, patch)
    for image in kustomization.get("images", []):
        for _, _, container in pods(found):
            name, _, _ = container["image"].partition("@")
            if name == image["name"]:
                container["image"] = f"{image.get('newName', name)}@{image['digest']}"
    return found


def _generate(found: list[dict[str, Any]], folder: Path, generator: dict[str, Any]) -> None:
    data: dict[str, str] = {}
    for path in generator["envs"]:
        data |= variables(folder / path)
    if generator.get("behavior") == "merge":
        [merged] = named(found, "ConfigMap", generator["name"])
        merged["data"] |= data
    else:
        metadata = {"name": generator["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(found: list[dict[str, Any]], folder: Path, patch: dict[str, Any]) -> None:
    if "path" in patch:
        for change in documents(folder / patch["path"]):
            assert change["kind"] == "NetworkPolicy", "in others' lists kustomize merges by keys"
            [target] = named(found, change["kind"], change["metadata"]["name"])
            _merge(target, change)
        return
    targets = named(found, patch["target"]["kind"], patch["target"].get("name"))
    assert targets
    for target in targets:
        for operation in yaml.safe_load(patch["patch"]):
            _replace(target, operation)


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def named(found: list[dict[str, Any]], kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Return the objects of a kind, or the one with this name."""
    return [each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"])]


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _replace(target: Any, operation: dict[str, Any]) -> None:
    assert operation["op"] == "replace"
    *way, last = operation["path"].strip("/").split("/")
    for step in way:
        target = target[int(step) if isinstance(target, list) else step]
    key = int(last) if isinstance(target, list) else last
    target[key]  # what is replaced exists
    target[key] = operation["value"]


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


def selected(policies: Iterable[dict[str, Any]], labels: dict[str, str], kind: str) -> list[dict[str, Any]]:
    """Return the network policies that concern a pod with these labels, of a kind: Ingress or Egress."""
    return [
        each
        for each in policies
        if kind in each["spec"]["policyTypes"] and _matches(each["spec"]["podSelector"], labels)
    ]


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    rules = selector.get("matchExpressions", [])
    assert {rule["operator"] for rule in rules} <= {"In"}, "what ours use"
    return wanted <= labels.items() and all(labels.get(rule["key"]) in rule["values"] for rule in rules)


NARROWEST = {4: 8, 6: 16}
"""The fewest bits of a range's prefix, by the version of its addresses: fewer are no place of anybody."""


def openings(found: list[dict[str, Any]]) -> Iterator[str]:
    """Go through what network policies leave open: pods without one, and rules that name not both whom and the port."""
    policies = named(found, "NetworkPolicy")
    for each in (each for each in found if "template" in each.get("spec", {})):
        labels = each["spec"]["template"]["metadata"]["labels"]
        for kind, rules, peers in (("Ingress", "ingress", "from"), ("Egress", "egress", "to")):
            concerned = selected(policies, labels, kind)
            if not concerned:
                yield f"{each['metadata']['name']}: no policy for {kind}"
            for policy in concerned:
                for rule in policy["spec"].get(rules) or []:
                    yield from (f"{policy['metadata']['name']}: {wrong}" for wrong in _wrong(rule, peers))


def _wrong(rule: dict[str, Any], peers: str) -> Iterator[str]:
    if not rule.get(peers):
        yield f"{peers} anywhere"
    if not rule.get("ports") or any("port" not in each or "endPort" in each for each in rule["ports"]):
        yield "any port"
    for peer in rule.get(peers) or []:
        if not peer or peer.get("namespaceSelector") == {}:
            yield f"{peers} every namespace"
        if "ipBlock" in peer:
            network = ip_network(peer["ipBlock"]["cidr"])
            if network.prefixlen < NARROWEST[network.version]:
                yield f"{peers} {network}"
