"""What lies in deploy/ is valid by others' schemas, and keeps the rules that we set ourselves. No cluster was there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
import yarl
from jsonschema import Draft202012Validator

from streamer.kafka.admin.topic_files import load_specs
from streamer.settings import load
from streamer.topology import SERVICES
from streamer.video.isolation.pool import MOST_PROCESSES
from tests.support.manifests import (
    BASE,
    COMPONENTS,
    DEPLOY,
    EXAMPLE,
    named,
    objects,
    openings,
    pods,
    selected,
    size,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "data" / "schemas"
CUSTOM = {path.stem: json.loads(path.read_bytes()) for path in SCHEMAS.glob("[A-Z]*[a-z].json")}
KUBERNETES = "1.33"
EXACT = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(-[a-z-]+)?")
"""An image by an exact version."""
PINNED = re.compile(r"[a-z0-9./:-]+@sha256:[0-9a-f]{64}")
"""An image by its digest."""


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


# -- network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_every_pod_has_policies_and_each_rule_names_whom_and_which_port(folder: Path) -> None:
    assert [*openings(objects(folder))] == []


def _without_policies(found: list[dict[str, Any]]) -> None:
    found[:] = [each for each in found if each["kind"] != "NetworkPolicy"]


def _changed(name: str, **spec: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(found: list[dict[str, Any]]) -> None:
        [policy] = named(found, "NetworkPolicy", name)
        policy["spec"] |= spec

    return change


DNS = [{"protocol": "UDP", "port": 53}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without_policies, "streamer-embed: no policy for Egress"),
        (_changed("streamer", podSelector={"matchLabels": {"app.kubernetes.io/name": "another"}}),
         "streamer-topics: no policy for Ingress"),
        (_changed("streamer", policyTypes=["Egress"]), "streamer-topics: no policy for Ingress"),
        (_changed("streamer-kafka", egress=[{}]), "streamer-kafka: to anywhere"),
        (_changed("streamer-kafka", egress=[{"ports": DNS}]), "streamer-kafka: to anywhere"),
        (_changed("streamer-store", egress=[{"to": [{"podSelector": {}}]}]), "streamer-store: any port"),
        (_changed("streamer-store", egress=[{"to": [{"podSelector": {}}], "ports": [{"port": 1, "endPort": 65535}]}]),
         "streamer-store: any port"),
        (_changed("streamer-clips", egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": DNS}]),
         "streamer-clips: to 0.0.0.0/0"),
        (_changed("streamer-clips", egress=[{"to": [{"ipBlock": {"cidr": "2000::/3"}}], "ports": DNS}]),
         "streamer-clips: to 2000::/3"),
        (_changed("streamer-clips", egress=[{"to": [{"namespaceSelector": {}}], "ports": DNS}]),
         "streamer-clips: to every namespace"),
        (_changed("streamer-metrics", ingress=[{"ports": DNS}]), "streamer-metrics: from anywhere"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_a_pod_without_a_policy_and_a_rule_for_everybody_are_found(
    folder: Path, change: Callable[[list[dict[str, Any]]], None], told: str
) -> None:
    found = objects(folder)
    change(found)
    assert told in [*openings(found)]


def reachable(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rules by which a pod may open connections."""
    policies = selected(named(found, "NetworkPolicy"), {"app.kubernetes.io/name": name}, "Egress")
    return [rule for policy in policies for rule in policy["spec"].get("egress", [])]


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_pods_reach_what_their_settings_name_and_no_other_port(folder: Path) -> None:
    found = objects(folder)
    [config] = [each["data"] for each in found if each["kind"] == "ConfigMap"]
    kafka = {int(address.rpartition(":")[2]) for address in config["STREAMER_BOOTSTRAP_SERVERS"].split(",")}
    always = {53} | (kafka if folder == EXAMPLE else {9092, 9093})
    store = {yarl.URL(config["STREAMER_STORE"]).port}
    clips = {yarl.URL(uri).port for uri in json.loads(config.get("STREAMER_ALLOWED_URIS", "[]"))}
    ports = {
        name: {port["port"] for rule in reachable(found, name) for port in rule["ports"]} for name, _, _ in pods(found)
    }
    assert kafka <= always
    assert ports == {
        "streamer-topics": always,
        "streamer-rerank": always | store,
        "streamer-embed": always | store | clips,
    }


def test_an_overlay_says_where_brokers_store_and_sources_are() -> None:
    """And it is only said there: the base knows no address, and lets the embedder fetch from nowhere."""
    [clips] = named(objects(BASE), "NetworkPolicy", "streamer-clips")
    assert clips["spec"]["egress"] == []
    assert not [each for name, _, _ in pods(objects(BASE)) for each in blocks_of(objects(BASE), name)]
    found = objects(EXAMPLE)
    for name in ("streamer-kafka", "streamer-store", "streamer-clips"):
        [policy], [before] = named(found, "NetworkPolicy", name), named(objects(BASE), "NetworkPolicy", name)
        assert policy["spec"]["egress"] != before["spec"]["egress"]
        assert {**policy["spec"], "egress": []} == {**before["spec"], "egress": []}, "the same pods"
    assert {name: len(blocks_of(found, name)) for name, _, _ in pods(found)} == {
        "streamer-topics": 1, "streamer-rerank": 1, "streamer-embed": 3,
    }  # fmt: skip


def blocks_of(found: list[dict[str, Any]], name: str) -> list[str]:
    """Return the ranges of addresses to which a pod may open connections."""
    return [peer["ipBlock"]["cidr"] for rule in reachable(found, name) for peer in rule["to"] if "ipBlock" in peer]


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("93.184.215.14", True), ("2606:2800:21f::1", True), ("10.1.2.3", False), ("169.254.169.254", False),
        ("127.0.0.1", False), ("100.64.0.1", False), ("192.168.1.1", False), ("198.18.0.1", False),
        ("240.0.0.1", False), ("::1", False), ("fd00::1", False), ("fe80::1", False), ("64:ff9b::a9fe:a9fe", False),
    ],
)  # fmt: skip
def test_the_component_for_unknown_sources_reaches_public_addresses_only(address: str, reached: bool) -> None:
    given = ip_address(address)
    [policy] = objects(COMPONENTS / "public-sources")
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "streamer-embed"}}
    [rule] = policy["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    blocks = [
        (ip_network(each["ipBlock"]["cidr"]), map(ip_network, each["ipBlock"].get("except", []))) for each in rule["to"]
    ]
    assert reached == any(given in block and not any(given in each for each in besides) for block, besides in blocks)


KUBECTL = shutil.which("kubectl")


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl")
@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_kustomize_builds_what_these_tests_look_at(folder: Path) -> None:
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(built)}
    for ours in objects(folder):
        if ours["kind"] in ("NetworkPolicy", "ScaledObject"):
            assert theirs[ours["kind"], ours["metadata"]["name"]]["spec"] == ours["spec"]
        if ours["kind"] in ("StatefulSet", "Job"):
            pod = theirs[ours["kind"], ours["metadata"]["name"]]["spec"]["template"]["spec"]
            mine = ours["spec"]["template"]["spec"]
            assert pod["containers"][0]["image"] == mine["containers"][0]["image"]
            assert pod["volumes"] == mine["volumes"]


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
        own = [volume for volume in pod["volumes"] if "emptyDir" in volume]
        volumes = {volume["name"]: size(volume["emptyDir"]["sizeLimit"]) for volume in own}
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


# -- images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_pods_run_an_image_by_its_digest_which_one_place_says(folder: Path) -> None:
    images = {container["image"] for _, _, container in pods(objects(folder))}
    assert len(images) == 1
    assert not [image for image in images if not PINNED.fullmatch(image)]
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    [place] = kustomization["images"]
    assert place["name"] == "cliprerank-streamer"
    assert set(place["digest"].removeprefix("sha256:")) == {"0"}, "whose digest nobody here can know"
    assert "newTag" not in place


def test_a_tag_without_a_digest_is_no_pinned_image() -> None:
    for image in ("a", "a:1.2.3", "a:latest", f"a:latest@sha256:{'0' * 63}", "a@sha256:..."):
        assert not PINNED.fullmatch(image)
    for image in (f"a@sha256:{'0' * 64}", f"example.com:5000/b/a:1.2.3@sha256:{'0' * 64}"):
        assert PINNED.fullmatch(image)


def test_images_of_others_have_no_default_and_one_list_of_exact_versions() -> None:
    """Compose and builds refuse to start without the variables, which `make pin-images` writes with digests."""
    versions = variables(DEPLOY / "images.txt")
    for image in versions.values():
        assert EXACT.fullmatch(image)
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+_IMAGE)", text)) == versions.keys()
    given = [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert set(given) == {f"${{{name}:?run make pin-images}}" for name in versions if name != "PYTHON_IMAGE"}
    built = [service["build"]["args"]["PYTHON"] for service in compose()["services"].values() if "build" in service]
    assert set(built) == {"${PYTHON_IMAGE:?run make pin-images}"}
    assert re.findall(r"^ARG PYTHON.*$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE) == ["ARG PYTHON"]


def test_a_base_without_a_digest_is_refused() -> None:
    environment = {**os.environ, "BASE": "python:3.11-slim-bookworm"}
    script = ROOT / "scripts" / "image.sh"
    done = subprocess.run([script, "build"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "names no digest" in done.stderr


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
