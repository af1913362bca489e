"""The alerts: that every metric in them exists, and that they fire when they should, by promtool where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docker" / "observability" / "alerts.yml"


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, str]] = group["rules"]
    return found


def test_every_metric_in_an_alert_is_one_of_ours() -> None:
    metrics = Metrics()
    metrics.set_model_info("m", "w", "0123456789ab", "1")
    metrics.watch_batch_caps(lambda: {"cuda:0": 4})
    known = set(re.findall(r"^# TYPE (\w+)", metrics.exposition()[0].decode(), re.MULTILINE))
    for rule in rules():
        for name in re.findall(r"frcnn_\w+", rule["expr"]):
            assert {name, name.removesuffix("_bucket")} & known, name


def test_every_alert_is_explained() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in documented


def test_compose_mounts_the_rules_where_both_configurations_look() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounted = compose["services"]["prometheus"]["volumes"]
    assert "./docker/observability/alerts.yml:/etc/prometheus/alerts.yml:ro" in mounted
    for name in ("prometheus.yml", "prometheus.with-key.yml"):
        assert yaml.safe_load((ALERTS.parent / name).read_text())["rule_files"] == ["alerts.yml"]


def test_they_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool")
    tests = (Path(__file__).parent / "alerts_test.yml").read_text().replace("ALERTS", str(ALERTS))
    (tmp_path / "tests.yml").write_text(tests)
    for arguments in (["check", "rules", str(ALERTS)], ["test", "rules", str(tmp_path / "tests.yml")]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
