"""What lies in deploy/ is valid by others' schemas, and keeps the rules that we set ourselves. No cluster was there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from streamer.kafka.admin.topic_files import load_specs
from streamer.settings import load
from streamer.topology import SERVICES
from streamer.video.isolation.pool import MOST_PROCESSES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
EXAMPLE = DEPLOY / "kubernetes" / "overlays" / "example"
SCHEMAS = ROOT / "tests" / "data" / "schemas"
CUSTOM = {path.stem: json.loads(path.read_bytes()) for path in SCHEMAS.glob("[A-Z]*[a-z].json")}
KUBERNETES = "1.33"
EXACT = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(-[a-z-]+)?(@sha256:[0-9a-f]{64})?")
"""An image by an exact version, or better by its digest."""


def variables(path: Path) -> dict[str, str]:
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


def strict(schema: Any, *, properties: bool = False) -> Any:
    """Return a custom resource's schema that refuses unknown fields, which a cluster would silently drop."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: strict(each, properties=name == "properties" and not properties) for name, each in schema.items()}
    if not properties and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


def validate(each: dict[str, Any]) -> None:
    custom = CUSTOM.get(each["kind"])
    if custom is None:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
        return
    assert each["apiVersion"] == f"{custom['group']}/{custom['version']}"
    schema = strict(custom["schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    Draft202012Validator(schema).validate(each)


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Go through the pod templates: the object's name, the pod, its container."""
    for each in found:
        if "template" in each.get("spec", {}):
            pod = each["spec"]["template"]["spec"]
            [container] = pod["containers"]
            yield each["metadata"]["name"], pod, container


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_every_kubernetes_object_is_valid_by_its_schema(folder: Path) -> None:
    found = objects(folder)
    kinds = [each["kind"] for each in found]
    for each in found:
        validate(each)
    assert sorted(set(kinds)) == [
        "ConfigMap", "Job", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "ScaledObject",
        "Service", "ServiceAccount", "StatefulSet", "TriggerAuthentication",
    ]  # fmt: skip


def test_the_schema_validation_refuses_wrong_kubernetes_objects() -> None:
    [scaled, *_] = [each for each in objects(BASE) if each["kind"] == "ScaledObject"]
    [budget, *_] = [each for each in objects(BASE) if each["kind"] == "PodDisruptionBudget"]
    scaled["spec"]["minReplicas"] = 1
    with pytest.raises(Exception, match="minReplicas"):
        validate(scaled)
    budget["spec"]["maxUnavailabel"] = 1
    with pytest.raises(Exception, match="maxUnavailabel"):
        validate(budget)


def test_pods_have_no_privileges_and_say_what_they_need() -> None:
    found = list(pods(objects(BASE)))
    assert [name for name, _, _ in found] == ["streamer-topics", "streamer-embed", "streamer-rerank"]
    for _, pod, container in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_services_are_probed_named_and_protected() -> None:
    found = objects(BASE)
    services = {name: container for name, _, container in pods(found) if name != "streamer-topics"}
    for name, container in services.items():
        assert container["startupProbe"]["httpGet"]["path"] == container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        [identity] = [each for each in container["env"] if each["name"] == "STREAMER_INSTANCE_ID"]
        assert identity["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
        of_it = {each["kind"] for each in found if each["metadata"]["name"] == name}
        assert {"StatefulSet", "Service", "PodDisruptionBudget", "ScaledObject"} <= of_it
    policies = [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]
    assert {"Ingress", "Egress"} == set(policies[0]["policyTypes"])
    assert policies[0]["podSelector"]["matchExpressions"][0]["values"] == [
        "streamer-embed", "streamer-rerank", "streamer-topics",
    ]  # fmt: skip


def test_secrets_are_only_referred_to() -> None:
    found = objects(EXAMPLE)
    assert not [each for each in found if each["kind"] == "Secret"]
    for _, _, container in pods(found):
        assert {"secretRef": {"name": "streamer-credentials"}} in container["envFrom"]
    [config] = [each for each in found if each["kind"] == "ConfigMap"]
    assert not [name for name in config["data"] if re.search("PASSWORD|USERNAME|SECRET|TOKEN", name)]


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_the_settings_of_the_cluster_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [config] = [each for each in objects(folder) if each["kind"] == "ConfigMap"]
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    loaded = load()
    assert loaded.kafka["security.protocol"] == "SASL_SSL"
    assert loaded.store.startswith("redis+cluster://")
    assert loaded.metrics_port == 9400


UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def size(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_the_sizes_of_a_pod_add_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [config] = [each for each in objects(folder) if each["kind"] == "ConfigMap"]
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    settings = load()
    for name, pod, container in pods(objects(folder)):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        volumes = {volume["name"]: size(volume["emptyDir"]["sizeLimit"]) for volume in pod["volumes"]}
        assert sum(volumes.values()) <= size(limits.get("ephemeral-storage", requests["ephemeral-storage"])), name
        if name == "streamer-embed":
            decoders = MOST_PROCESSES * settings.decode_workers * settings.decode_memory
            assert size(requests["memory"]) + decoders <= size(limits["memory"])
            assert settings.download_bytes * 1.1 < volumes["tmp"]
            assert settings.download_bytes < size(requests["ephemeral-storage"])


def test_scaling_follows_the_groups_lag_up_to_the_partitions() -> None:
    partitions = {spec.name: spec.partitions for spec in load_specs()}
    triggers = {}
    for each in objects(BASE):
        if each["kind"] == "ScaledObject":
            [trigger] = each["spec"]["triggers"]
            triggers[trigger["metadata"]["consumerGroup"]] = trigger["metadata"]["topic"]
            assert each["spec"]["maxReplicaCount"] == partitions[trigger["metadata"]["topic"]]
            assert trigger["metadata"]["offsetResetPolicy"] == "earliest"  # as the consumers have it
    assert triggers == {each.group: each.input for each in SERVICES.values()}


def test_the_example_patches_existing_objects() -> None:
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects(BASE)}
    kustomization = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())
    for patch in kustomization["patches"]:
        if "path" in patch:
            changed = yaml.safe_load((EXAMPLE / patch["path"]).read_text())
            assert (changed["kind"], changed["metadata"]["name"]) in found
            continue
        targets = [
            each
            for (kind, name), each in found.items()
            if kind == patch["target"]["kind"] and name == patch["target"].get("name", name)
        ]
        assert targets
        for target in targets:
            for operation in yaml.safe_load(patch["patch"]):
                node: Any = target
                for step in operation["path"].strip("/").split("/"):
                    node = node[int(step) if isinstance(node, list) else step]  # what is replaced exists


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(compose())
    wrong = compose()
    wrong["services"]["embed"]["comand"] = ["embed"]
    assert not validator.is_valid(wrong)


def test_the_compose_file_runs_everything_and_what_it_mounts_exists() -> None:
    services = compose()["services"]
    assert services.keys() == {"kafka", "valkey", "topics", "embed", "rerank", "prometheus", "grafana"}
    for service in services.values():
        assert service["image"].startswith("cliprerank-streamer:$") or EXACT.fullmatch(service["image"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), volume
    for name in ("topics", "embed", "rerank"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    [temporary] = services["embed"]["tmpfs"]
    assert int(services["embed"]["environment"]["STREAMER_DOWNLOAD_BYTES"]) < int(temporary[10:-1]) << 20
    assert services["rerank"]["environment"]["STREAMER_STORE"] == services["embed"]["environment"]["STREAMER_STORE"]


def test_grafana_is_provisioned_with_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "streamer.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in compose()["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_the_image_is_pinned_unprivileged_and_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    [python] = re.findall(r"^ARG PYTHON=(.+)$", text, re.MULTILINE)
    assert EXACT.fullmatch(python)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert image in {"${PYTHON}", "packages-${VARIANT}"} | stages
    assert {"packages-cpu", "packages-cuda"} <= stages
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, source
    final = text.rpartition("\nFROM ")[2]
    assert final.index("USER 10001") < final.index("ENTRYPOINT")
    assert "HEALTHCHECK" in final


def test_the_cpu_image_leaves_out_cuda_and_nothing_else() -> None:
    [awk] = re.findall(r"(awk '.+') requirements/service.txt", (DEPLOY / "Dockerfile").read_text())
    locked = (ROOT / "requirements" / "service.txt").read_text()
    done = subprocess.run(["/bin/sh", "-c", awk], input=locked, capture_output=True, text=True, check=True)
    names = re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE)
    kept = re.findall(r"^([a-z0-9-]+)==", done.stdout, re.MULTILINE)
    cuda = {name for name in names if name.startswith(("nvidia-", "cuda-"))} | {"triton", "torch", "torchvision"}
    assert set(kept) == set(names) - cuda
    assert cuda <= set(names)
    assert done.stdout.count("--hash=sha256:") > len(kept)
    assert {"redis", "opentelemetry-sdk", "gcsfs"} <= set(kept), "extras that a deployment uses"


def test_only_wheels_are_installed_because_the_build_of_another_package_runs_its_code() -> None:
    for name in ("Makefile", "deploy/Dockerfile"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        installs = re.findall(r"pip (?:install|compile)[^\n;&]*", text)
        assert len(installs) > 3
        for line in installs:
            ours = "--editable ." in line or "dist/*.whl" in line
            assert ours or "--only-binary :all:" in line, line
