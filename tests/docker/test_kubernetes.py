"""The manifests, against Kubernetes' own schemas, and against what the service does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.devices.cores import compute_threads
from service.settings import Settings
from service.telemetry.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
NEWEST = kubernetes_validate.latest_version()
# The oldest with preStop's `sleep` switched on.
VERSIONS = ["1.30", NEWEST]
# What a ServiceMonitor may hold, of what we use: its definition comes with the Prometheus operator.
SERVICE_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "endpoints"],
            "properties": {
                "selector": {"type": "object", "required": ["matchLabels"]},
                "endpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^\d+s$"},
                            "authorization": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "type": {"type": "string"},
                                    "credentials": {
                                        "type": "object",
                                        "required": ["name", "key"],
                                        "additionalProperties": False,
                                        "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def written() -> list[dict[str, Any]]:
    """The files themselves, which need no tool to be read."""
    kustomization = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    return [yaml.safe_load((FOLDER / "gpu" / name).read_text()) for name in kustomization["resources"]]


MANIFESTS = {manifest["kind"]: manifest for manifest in written()}
PROJECT = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
DEPLOYMENT = MANIFESTS["Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ENVIRONMENT = {entry["name"]: entry["value"] for entry in CONTAINER["env"] if "value" in entry}


def check(manifest: dict[str, Any], version: str) -> None:
    if manifest["kind"] == "ServiceMonitor":
        jsonschema.validate(manifest, SERVICE_MONITOR)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_fits_its_schema(kind: str, version: str) -> None:
    check(MANIFESTS[kind], version)


def test_the_schema_would_tell() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check(DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | {"replicsa": 1}}, NEWEST)
    monitor = MANIFESTS["ServiceMonitor"]
    with pytest.raises(jsonschema.ValidationError):
        check(monitor | {"spec": monitor["spec"] | {"endpoint": []}}, NEWEST)


def test_the_image_is_of_this_version() -> None:
    kustomization = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())
    assert kustomization["images"][0]["newTag"] == PROJECT["version"]


def test_every_file_is_used() -> None:
    names = yaml.safe_load((FOLDER / "gpu" / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in (FOLDER / "gpu").iterdir()} == {*names, "kustomization.yaml"}


@pytest.mark.parametrize("overlay", ["gpu", "cpu"])
def test_what_is_applied_fits_the_schemas(overlay: str) -> None:
    manifests = rendered(overlay)
    assert {manifest["kind"] for manifest in manifests} == set(MANIFESTS)
    for manifest in manifests:
        for version in VERSIONS:
            check(manifest, version)
        assert manifest["metadata"].get("namespace", "detection") == "detection"
    container = next(m for m in manifests if m["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"faster-rcnn-service:{PROJECT['version']}"
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is (overlay == "gpu")
    devices = [entry["value"] for entry in container["env"] if entry["name"] == "FRCNN_DEVICE"]
    assert devices == ["cuda" if overlay == "gpu" else "cpu"]


def test_a_pod_may_do_nothing() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not POD["automountServiceAccountToken"]


def test_a_pod_is_waited_for_until_it_has_drained() -> None:
    before_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(ENVIRONMENT["FRCNN_DRAIN_DELAY_S"])
    assert POD["terminationGracePeriodSeconds"] > before_s + drain_s + Settings().shutdown_timeout_s
    readiness = CONTAINER["readinessProbe"]
    assert drain_s > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_a_rollout_is_given_up_only_after_a_pod_is() -> None:
    startup = CONTAINER["startupProbe"]
    assert DEPLOYMENT["spec"]["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"] + 300


def test_probes_and_settings_and_metrics_exist() -> None:
    routes = set(create_app(Settings()).openapi()["paths"])
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert {*probes.values(), MANIFESTS["ServiceMonitor"]["spec"]["endpoints"][0]["path"]} <= routes
    assert {name.removeprefix("FRCNN_").lower() for name in ENVIRONMENT} <= set(Settings.model_fields)


@pytest.mark.parametrize("overlay", ["gpu", "cpu"])
def test_the_autoscaler_is_told_what_it_asks_for(overlay: str) -> None:
    document = (FOLDER.parents[1] / "docs" / "deployment.md").read_text()
    rules = yaml.safe_load(re.findall(r"^    rules:\n(?: {6}.*\n)+", document, re.MULTILINE)[0])["rules"]
    given = set()
    for rule in rules:
        series = rule["seriesQuery"].partition("{")[0]
        assert re.search(rf"^{series}[ {{]", Metrics().exposition()[0].decode(), re.MULTILINE), "told from the start"
        name = rule.get("name", {"matches": "$", "as": ""})
        given.add(re.sub(name["matches"], name["as"].replace("${1}", r"\1"), series))
    scaler = next(manifest for manifest in rendered(overlay) if manifest["kind"] == "HorizontalPodAutoscaler")
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == given == {"frcnn_images_queued", "frcnn_images_rejected_per_second"}


def test_a_pod_keeps_as_many_cores_busy_as_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else each would have threads for every core of its node, as there is no limit.
    requested = CONTAINER["resources"]["requests"]["cpu"]
    assert requested.isdecimal(), "in whole cores; the kubelet would round others up"
    for name in ("FRCNN_DECODE_THREADS", "OMP_NUM_THREADS"):
        source = next(entry for entry in CONTAINER["env"] if entry["name"] == name)["valueFrom"]
        assert source == {"resourceFieldRef": {"containerName": CONTAINER["name"], "resource": "requests.cpu"}}
        monkeypatch.setenv(name, requested)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert compute_threads(["cpu"], tmp_path) == Settings().decode_threads == int(requested)


def test_the_labels_meet() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["metadata"]["labels"] == labels
    port = CONTAINER["ports"][0]["name"]
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == port
    assert (
        MANIFESTS["Service"]["spec"]["ports"][0]["name"] == MANIFESTS["ServiceMonitor"]["spec"]["endpoints"][0]["port"]
    )
