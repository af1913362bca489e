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

from service.settings import Settings

ROOT = Path(__file__).parents[2]
OVERLAYS = ["docker/compose.cpu.yml", "docker/compose.keys.yml"]
PROFILES = ["scaled", "loadtest", "observability"]


class Loader(yaml.SafeLoader):
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
    assert all(port.startswith(("127.0.0.1:", "${FRCNN_PUBLISH")) for port in service.get("ports", []))


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


def test_the_balancer_passes_on_only_what_is_safe() -> None:
    config = (ROOT / "docker" / "nginx.conf").read_text()
    directives = dict(re.findall(r"^\s+(proxy_\w+|client_max_body_size) ([^;]+);", config, re.MULTILINE))
    settings = Settings()
    assert set(directives["proxy_next_upstream"].split()) == {"error", "timeout", "http_503", "non_idempotent"}
    # A request that timed out is older than what may be passed on, and the service's own answer to it comes first.
    waits_s, passes_s = (
        int(directives[name].removesuffix("s")) for name in ("proxy_read_timeout", "proxy_next_upstream_timeout")
    )
    assert passes_s < settings.request_timeout_ms / 1000 < waits_s
    assert int(directives["client_max_body_size"].removesuffix("m")) << 20 > settings.max_batch_body_bytes


def test_prometheus_differs_in_the_key_alone() -> None:
    plain, keyed = (
        yaml.safe_load((ROOT / "docker" / "observability" / name).read_text())
        for name in ("prometheus.yml", "prometheus.with-key.yml")
    )
    credentials = keyed["scrape_configs"][0].pop("authorization")
    assert credentials == {"credentials_file": "/run/secrets/frcnn_metrics_key"}
    assert keyed == plain
