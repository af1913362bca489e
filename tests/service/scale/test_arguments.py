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
    arguments = ScaleArguments(queue_capacity=64, device="cpu")  # type: ignore[call-arg]
    assert arguments.settings.weights == "bundled"
    assert arguments.replica_settings(gpus=0) == {"queue_capacity": 64, "device": "cpu", "decode_threads": 1}


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
        ({"detectors": "service.detector"}, "module:name"),
        ({"detectors": "no_such_module:load"}, "no_such_module"),
        ({"detectors": "service.detector:no_such_function"}, "no_such_function"),
        ({"detectors": "service.detector:MODEL_NAME"}, "cannot be called"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_deployed(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        ScaleArguments.model_validate(given)
    if "api_keys" in given:
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
        ({"request_timeout_ms": 300_000}, "FRCNN_REQUEST_TIMEOUT_MS"),  # at a proxy, too, which would end it earlier
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
    arguments = ScaleArguments(device=device)  # type: ignore[call-arg]
    assert arguments.gpus(in_cluster=in_cluster) == gpus
    assert arguments.deployment_options(gpus=gpus)["ray_actor_options"]["num_gpus"] == gpus
    assert arguments.replica_settings(gpus=gpus)["device"] == told


def test_the_service_refuses_before_serve_does_and_outlives_its_longest_request() -> None:
    arguments = ScaleArguments(queue_capacity=100, shutdown_timeout_s=30)  # type: ignore[call-arg]
    options = arguments.deployment_options(gpus=0)
    assert options["max_ongoing_requests"] > 100
    assert options["max_queued_requests"] > 0  # never without a bound, as Serve's default is
    assert options["backpressure_config"]["status_code"] == 429
    assert options["graceful_shutdown_timeout_s"] > 30


def test_serve_is_given_a_router_only_where_it_takes_one() -> None:
    arguments = ScaleArguments()
    assert "request_router_config" in arguments.deployment_options(gpus=0)
    assert "request_router_config" not in arguments.deployment_options(gpus=0, behind_haproxy=True)


@pytest.mark.parametrize(
    ("given", "threads"), [({"num_cpus": 4}, 4), ({"num_cpus": 0.5}, 1), ({"decode_threads": 3}, 3)]
)
def test_decoding_has_the_cores_of_the_replica(given: dict[str, Any], threads: int) -> None:
    assert ScaleArguments.model_validate(given).replica_settings(gpus=0)["decode_threads"] == threads
