"""The Dockerfile and the compose files, as they are written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import MIB, Settings
from service.wire import LONGEST_TIMEOUT_MS

ROOT = Path(__file__).parents[2]
OVERLAYS = ["docker/compose.cpu.yml", "docker/compose.keys.yml"]
PROFILES = ["scaled", "loadtest", "observability"]


class Loader(yaml.SafeLoader):  # type: ignore[misc] # it has no types
    """Reads `!reset`, which is compose's own, as nothing."""


Loader.add_constructor("!reset", lambda loader, node: None)
SERVICES: dict[str, Any] = yaml.load((ROOT / "docker-compose.yml").read_text(), Loader)["services"]


def some_of(names: list[str]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(names, count) for count in range(len(names) + 1)))


def compose(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("needs docker compose")
    return subprocess.run(
        ["docker", "compose", *arguments], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )


@pytest.mark.parametrize("overlays", some_of(OVERLAYS))
@pytest.mark.parametrize("profiles", some_of(PROFILES))
def test_compose_takes_every_file_and_profile(overlays: tuple[str, ...], profiles: tuple[str, ...]) -> None:
    files = [part for file in ("docker-compose.yml", *overlays) for part in ("--file", file)]
    named = [part for profile in profiles for part in ("--profile", profile)]
    done = compose(*files, *named, "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("overlay", "asking"), [((), {"detector", "replica"}), (("--file", OVERLAYS[0]), set())])
def test_who_asks_for_a_gpu(overlay: tuple[str, ...], asking: set[str]) -> None:
    told = compose("--file", "docker-compose.yml", *overlay, "--profile", "*", "config").stdout
    resources = {name: service["deploy"]["resources"] for name, service in yaml.safe_load(told)["services"].items()}
    assert {name for name in resources if resources[name].get("reservations", {}).get("devices")} == asking


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_registry_is_named() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "://" not in dockerfile.replace("http://127.0.0.1:", "")
    assert re.findall(r"^ARG TORCH_INDEX=(.*)$", dockerfile, re.MULTILINE) == ["", ""]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little_and_not_take_everything(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "grafana")
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    for port in service.get("ports", []):
        assert re.match(r"(\$\{FRCNN_PUBLISH\w*:-)?127\.0\.0\.1:", port), "reachable from elsewhere by default"


@pytest.mark.parametrize("name", ["detector", "replica"])
def test_it_is_waited_for_until_it_has_drained(name: str) -> None:
    service, settings = SERVICES[name], Settings()
    drain_s = float(re.findall(r":-(\d+)", service["environment"]["FRCNN_DRAIN_DELAY_S"])[0])
    assert drain_s > 0
    assert float(service["stop_grace_period"].removesuffix("s")) > drain_s + settings.shutdown_timeout_s
    assert settings.shutdown_timeout_s * 1000 > settings.request_timeout_ms


@pytest.mark.parametrize("name", ["detector", "replica"])
def test_settings_of_the_service_exist(name: str) -> None:
    given = {variable for variable in SERVICES[name]["environment"] if variable.startswith("FRCNN_")}
    assert given <= {f"FRCNN_{field}".upper() for field in Settings.model_fields}


@pytest.mark.parametrize("name", ["detector", "replica"])
def test_every_setting_of_the_service_can_be_set(name: str) -> None:
    # Except where it listens, which image and ports say, and the collector's address, which has its other name.
    wanted = {f"FRCNN_{field}".upper() for field in Settings.model_fields} - {"FRCNN_HOST", "FRCNN_PORT"}
    passed_on = set(SERVICES[name]["environment"])
    assert {variable for variable in passed_on if variable.startswith("FRCNN_")} == wanted - {"FRCNN_OTLP_ENDPOINT"}
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in passed_on


def test_all_ways_to_serve_have_the_same_weights() -> None:
    deployment = yaml.safe_load((ROOT / "docker" / "kubernetes" / "gpu" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ray = yaml.safe_load((ROOT / "service" / "scale" / "serve.yaml").read_text())
    weights = Settings.model_fields["weights"].default
    assert {one["name"]: one.get("value") for one in container["env"]}["FRCNN_WEIGHTS"] == weights
    assert [application["args"]["weights"] for application in ray["applications"]] == [weights]
    for name in ("detector", "replica"):
        assert SERVICES[name]["environment"]["FRCNN_WEIGHTS"] == f"${{FRCNN_WEIGHTS:-{weights}}}"
    assert "FRCNN_WEIGHTS" not in (ROOT / "Dockerfile").read_text()


def test_what_is_set_is_passed_on_and_nothing_else(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("FRCNN_QUEUE_CAPACITY=7\nFRCNN_API_KEYS_FILE=keys.txt\n")
    for overlay, keys in ((), "keys.txt"), (("--file", OVERLAYS[1]), "/run/secrets/frcnn_api_keys"):
        told = compose("--env-file", str(dotenv), "--file", "docker-compose.yml", *overlay, "config").stdout
        environment = yaml.safe_load(told)["services"]["detector"]["environment"]
        assert (environment["FRCNN_QUEUE_CAPACITY"], environment["FRCNN_API_KEYS_FILE"]) == ("7", keys)
        assert environment["FRCNN_MAX_BATCH_SIZE"] is None


def test_putting_it_under_load_leaves_it_as_it_is() -> None:
    assert "depends_on" not in SERVICES["loadtest"]


def nginx() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What nginx.conf says for all requests, and what each location says for its own."""
    config = re.sub(r"#.*", "", (ROOT / "docker" / "nginx.conf").read_text())
    block = re.compile(r"location ([^{]+?) \{([^}]*)\}")
    locations = {name: directives(body) for name, body in block.findall(config)}
    return directives(block.sub("", config)), locations


def directives(text: str) -> dict[str, str]:
    """Values by name; a limit of connections by the name of its zone as well."""
    return dict(re.findall(r"^\s*(limit_conn \w+|\w+) ([^;{]+);", text, re.MULTILINE))


def number(value: str, unit: str) -> int:
    return int(value.removesuffix(unit))


def test_the_balancer_passes_on_only_what_is_safe() -> None:
    general, _ = nginx()
    assert set(general["proxy_next_upstream"].split()) == {"error", "timeout", "http_503", "non_idempotent"}
    assert general["proxy_next_upstream_tries"] == "2"
    # A request that timed out is older than what may be passed on, and the service's own answer to it comes first.
    assert number(general["proxy_next_upstream_timeout"], "s") < Settings().request_timeout_ms / 1000
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        assert number(general[name], "s") > LONGEST_TIMEOUT_MS / 1000


def test_the_balancer_keeps_no_more_of_bodies_than_the_service_takes() -> None:
    (general, locations), settings = nginx(), Settings()
    batch = locations.pop("= /detect/batch")
    # Three bytes are four characters in base64; a form, or JSON, around the files takes a little more.
    for size, bound in (
        (settings.max_body_bytes * 4 / 3, general["client_max_body_size"]),
        (settings.max_batch_body_bytes, batch["client_max_body_size"]),
    ):
        assert size + 64 * 1024 <= number(bound, "m") << 20 < size + 2 * MIB
    assert not any("client_max_body_size" in location for location in locations.values())
    assert {general[f"client_{part}_timeout"] for part in ("header", "body")} == {"10s"}


def test_one_address_alone_does_not_fill_the_balancer() -> None:
    general, locations = nginx()
    batch = locations["= /detect/batch"]
    # A location with a limit of its own forgets the general one.
    assert batch["limit_conn requests"] == general["limit_conn requests"]
    requests, batches = int(general["limit_conn requests"]), int(batch["limit_conn batches"])
    sizes = number(general["client_max_body_size"], "m"), number(batch["client_max_body_size"], "m")
    balancer = SERVICES["balancer"]
    memory, disk = (
        number(text, "g") * 1024
        for text in (
            balancer["deploy"]["resources"]["limits"]["memory"],
            re.findall(r"^/tmp:size=(\w+)", balancer["tmpfs"][0])[0],
        )
    )
    assert (requests - batches) * sizes[0] + batches * sizes[1] < disk < memory
    assert general["proxy_max_temp_file_size"] == "0"  # answers take none of it


def test_prometheus_is_handed_one_key_alone() -> None:
    keyed = yaml.safe_load((ROOT / "docker" / "compose.keys.yml").read_text())
    files = {name: secret["file"] for name, secret in keyed["secrets"].items()}
    assert keyed["services"]["prometheus"]["secrets"] == ["frcnn_metrics_key"]
    assert files["frcnn_metrics_key"] == "${FRCNN_METRICS_KEY_FILE:-./frcnn_metrics_key.txt}"
    kept_out = (ROOT / ".gitignore").read_text().split()
    for file in files.values():
        assert re.findall(r":-\.(/\w+\.txt)\}", file)[0] in kept_out


def test_prometheus_differs_in_the_key_alone() -> None:
    plain, keyed = (
        yaml.safe_load((ROOT / "docker" / "observability" / name).read_text())
        for name in ("prometheus.yml", "prometheus.with-key.yml")
    )
    credentials = keyed["scrape_configs"][0].pop("authorization")
    assert credentials == {"credentials_file": "/run/secrets/frcnn_metrics_key"}
    assert keyed == plain
