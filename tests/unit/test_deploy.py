"""What lies in deploy/ is valid by others' schemas, and keeps the rules that we set ourselves. No cluster was there."""

from __future__ import annotations

import json
import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
import yarl
from jsonschema import Draft202012Validator

from streamer.kafka.admin.topic_files import load_specs
from streamer.settings import load
from streamer.topology import SERVICES
from streamer.video.isolation.pool import MOST_PROCESSES
from tests.support.manifests import BASE, DEPLOY, EXAMPLE, objects, pods, size

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "data" / "schemas"
CUSTOM = {path.stem: json.loads(path.read_bytes()) for path in SCHEMAS.glob("[A-Z]*[a-z].json")}
KUBERNETES = "1.33"
EXACT = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(-[a-z-]+)?")
"""An image by an exact version."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


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


def reachable(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rules by which a pod may open connections."""
    rules: list[dict[str, Any]] = []
    for policy in (each["spec"] for each in found if each["kind"] == "NetworkPolicy"):
        selector = policy["podSelector"]
        names = [selector["matchLabels"]["app.kubernetes.io/name"]] if "matchLabels" in selector else []
        names += [value for each in selector.get("matchExpressions", []) for value in each["values"]]
        rules += policy["egress"] if name in names else []
    return rules


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_pods_reach_what_their_settings_name_and_no_other_port(folder: Path) -> None:
    found = objects(folder)
    [config] = [each["data"] for each in found if each["kind"] == "ConfigMap"]
    kafka = {int(address.rpartition(":")[2]) for address in config["STREAMER_BOOTSTRAP_SERVERS"].split(",")}
    store = yarl.URL(config["STREAMER_STORE"]).port
    ports = {
        name: {port["port"] for rule in reachable(found, name) for port in rule["ports"]} for name, _, _ in pods(found)
    }
    always = {53, 9092, 9093}
    assert kafka <= always
    assert ports == {
        "streamer-topics": always,
        "streamer-rerank": always | {store},
        "streamer-embed": always | {store, 443},
    }


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("93.184.215.14", True), ("2606:2800:21f::1", True), ("10.1.2.3", False), ("169.254.169.254", False),
        ("127.0.0.1", False), ("100.64.0.1", False), ("192.168.1.1", False), ("198.18.0.1", False),
        ("240.0.0.1", False), ("::1", False), ("fd00::1", False), ("fe80::1", False),
    ],
)  # fmt: skip
def test_sources_of_clips_are_reached_at_public_addresses_only(address: str, reached: bool) -> None:
    given = ip_address(address)
    [rule] = [
        each
        for each in reachable(objects(BASE), "streamer-embed")
        if each["ports"] == [{"protocol": "TCP", "port": 443}]
    ]
    blocks = [(ip_network(each["ipBlock"]["cidr"]), map(ip_network, each["ipBlock"]["except"])) for each in rule["to"]]
    assert reached == any(given in block and not any(given in each for each in besides) for block, besides in blocks)


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


def test_each_image_is_an_argument_that_the_docs_say_how_to_give_by_digest() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    told = page[page.index("## Images by digest") :].partition("\n## ")[0]
    defaults = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", (DEPLOY / "compose.yaml").read_text()))
    for name, default in defaults.items():
        assert EXACT.fullmatch(default)
        assert f"{name}={default}@sha256:" in told
    ours = "cliprerank-streamer:${STREAMER_VERSION:-latest}"  # which it builds
    named = {service["image"] for service in compose()["services"].values()}
    assert named == {ours} | {f"${{{name}:-{default}}}" for name, default in defaults.items() if name != "PYTHON_IMAGE"}
    [python] = re.findall(r"^ARG PYTHON=(.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert defaults["PYTHON_IMAGE"] == python
    assert {container["image"] for _, _, container in pods(objects(BASE))} == {"cliprerank-streamer"}
    [image] = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())["images"]
    assert image["name"] == "cliprerank-streamer"
    assert DIGEST.fullmatch(image["digest"])
    assert "newTag" not in image


def test_the_image_is_unprivileged_and_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert image in {"${PYTHON}", "packages-${VARIANT}"} | stages
    assert {"packages-cpu", "packages-cuda"} <= stages
    secrets = set(re.findall(r"--mount=type=secret,id=(\w+)", text))
    assert secrets == set(re.findall(r"--secret id=(\w+)", (ROOT / "scripts" / "image.sh").read_text()))
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, source
    final = text.rpartition("\nFROM ")[2]
    assert final.index("USER 10001") < final.index("ENTRYPOINT")
    assert "HEALTHCHECK" in final


def test_the_cpu_image_leaves_out_cuda_and_nothing_else(tmp_path: Path) -> None:
    [split] = re.findall(r"RUN (awk '.+) \\\n +&& (grep .+)", (DEPLOY / "Dockerfile").read_text())
    locked = (ROOT / "requirements" / "service.txt").read_text()
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "service.txt").write_text(locked)
    subprocess.run(["/bin/sh", "-ec", "\n".join(split)], cwd=tmp_path, check=True)

    def packages(text: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)", text, re.MULTILINE))

    all_of_them = packages(locked)
    common, cuda, cpu = (packages((tmp_path / f"{part}.txt").read_text()) for part in ("common", "cuda", "cpu"))
    torch = {"torch", "torchvision"}
    assert cuda.keys() == {name for name in all_of_them if name.startswith(("nvidia-", "cuda-"))} | torch
    assert common == {name: each for name, each in all_of_them.items() if name not in cuda and name != "triton"}
    assert cpu == {name: all_of_them[name] for name in torch}
    for part in ("common", "cuda"):
        text = (tmp_path / f"{part}.txt").read_text()
        assert text.count("--hash=sha256:") > len(packages(text))
    assert {"redis", "opentelemetry-sdk", "gcsfs"} <= common.keys(), "extras that a deployment uses"


def test_only_wheels_are_installed_because_the_build_of_another_package_runs_its_code() -> None:
    for name in ("Makefile", "deploy/Dockerfile"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        installs = re.findall(r"pip (?:install|compile)[^\n;&]*", text)
        assert len(installs) > 3
        for line in installs:
            ours = "--editable ." in line or "dist/*.whl" in line
            assert ours or "--only-binary :all:" in line, line
