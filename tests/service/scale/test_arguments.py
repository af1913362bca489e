from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.scale.arguments import ScaleArguments


def test_settings_go_by_their_own_names_and_as_text() -> None:
    arguments = ScaleArguments.model_validate({"weights": "bundled", "queue_capacity": "64", "max_replicas": "3"})
    assert arguments.max_replicas == 3
    assert (arguments.settings.weights, arguments.settings.queue_capacity) == ("bundled", 64)


def test_what_is_not_given_is_left_to_each_replicas_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_WEIGHTS", "bundled")
    monkeypatch.setenv("FRCNN_API_KEYS", "secret")
    monkeypatch.setenv("FRCNN_DECODE_THREADS", "3")
    arguments = ScaleArguments(log_level="error")
    assert arguments.settings.weights == "bundled"
    assert set(arguments.replica_settings(gpus=0)) == {"log_level", "device", "queue_capacity", "shutdown_timeout_s"}


def test_replicas_are_told_what_serves_options_follow_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_QUEUE_CAPACITY", "9")
    monkeypatch.setenv("FRCNN_SHUTDOWN_TIMEOUT_S", "30")
    monkeypatch.setenv("FRCNN_DEVICE", "cuda:1")
    arguments = ScaleArguments()
    told, options = arguments.replica_settings(gpus=arguments.gpus(in_cluster=0)), arguments.deployment_options(gpus=1)
    assert told == {"device": "cuda:0", "queue_capacity": 9, "shutdown_timeout_s": 30}
    assert 0 < options["max_ongoing_requests"] - told["queue_capacity"] <= 256
    assert options["graceful_shutdown_timeout_s"] > told["shutdown_timeout_s"]
    with pytest.raises(ValidationError, match="queue_capacity, 9"):
        ScaleArguments(target_ongoing_requests=9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wieghts": "auto"}, "wieghts"),
        ({"queue_capacity": 0}, "queue_capacity"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2"),
        ({"target_ongoing_requests": 256}, "no replica would ever be added"),
        ({"api_keys": "secret"}, "set it in the environment"),
        ({"port": 9000}, "http_options"),
        ({"host": "0.0.0.0"}, "http_options"),
        ({"drain_delay_s": 5}, "Serve stops sending"),
        ({"enable_reload": True}, "one replica alone"),
        ({"request_timeout_ms": 300_000}, "FRCNN_REQUEST_TIMEOUT_MS"),  # at a proxy, too, which would end it earlier
        ({"detectors": "service.devices.loading"}, "module:name"),
        ({"detectors": "no_such_module:load"}, "no_such_module"),
        ({"detectors": "service.devices.loading:no_such_function"}, "no_such_function"),
        ({"detectors": "service.devices.loading:LOAD_ERRORS"}, "cannot be called"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_deployed(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        ScaleArguments.model_validate(given)
    if "api_keys" in given:
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "in_cluster", "gpus", "told"),
    [
        ("cpu", 8, 0, "cpu"),
        ("auto", 0, 0, "cpu"),
        ("auto", 8, 1, "cuda:0"),
        ("cuda", 0, 1, "cuda:0"),  # an autoscaling cluster may have none yet
        ("cuda:3", 8, 1, "cuda:0"),  # Ray gives it one, which it sees as its first
        ("cuda:2,cuda:3", 8, 2, "cuda:0,cuda:1"),
    ],
)
def test_gpus_of_a_replica_follow_from_its_device(device: str, in_cluster: float, gpus: int, told: str) -> None:
    arguments = ScaleArguments(device=device)
    assert arguments.gpus(in_cluster=in_cluster) == gpus
    assert arguments.deployment_options(gpus=gpus)["ray_actor_options"]["num_gpus"] == gpus
    assert arguments.replica_settings(gpus=gpus)["device"] == told


def test_the_service_rejects_before_serve_does_and_outlives_its_longest_request() -> None:
    arguments = ScaleArguments(queue_capacity=100, shutdown_timeout_s=30)
    options = arguments.deployment_options(gpus=0)
    assert options["max_ongoing_requests"] > 100
    assert options["max_queued_requests"] > 0  # never without a bound, as Serve's default is
    assert options["backpressure_config"]["status_code"] == 429
    assert options["graceful_shutdown_timeout_s"] > 30


def test_serve_is_given_a_router_only_where_it_takes_one() -> None:
    arguments = ScaleArguments()
    assert "request_router_config" in arguments.deployment_options(gpus=0)
    assert "request_router_config" not in arguments.deployment_options(gpus=0, behind_haproxy=True)


@pytest.mark.parametrize(("num_cpus", "threads"), [(4, 4), (2.5, 2), (0.5, 1)])
def test_decoding_has_the_cores_of_the_replica(num_cpus: float, threads: int) -> None:
    assert ScaleArguments(num_cpus=num_cpus).decode_threads == threads


def test_a_number_of_decoding_threads_is_passed_on() -> None:
    arguments = ScaleArguments(decode_threads=3)
    assert arguments.replica_settings(gpus=0)["decode_threads"] == 3
