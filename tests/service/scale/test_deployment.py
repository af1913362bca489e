"""What Serve makes of the arguments and of the configuration file; no cluster is started."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of what it imports

FILE = Path(__file__).parents[3] / "service" / "scale" / "serve.yaml"


def test_serve_takes_the_options_and_checks_the_builders_arguments_by_its_annotation() -> None:
    from ray import serve

    from service.scale.arguments import ScaleArguments
    from service.scale.deployment import detector
    from service.scale.replica import Replica

    (parameter,) = inspect.signature(detector).parameters.values()
    assert parameter.annotation is ScaleArguments
    options = ScaleArguments(device="cuda").deployment_options(gpus=1)
    deployment = serve.deployment(serve.ingress()(Replica), name="detector", **options)
    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.max_ongoing_requests == 256 + 256


def test_the_configuration_file_is_one_that_serve_and_the_builder_take() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from service.scale.arguments import ScaleArguments
    from service.settings import Settings

    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    (application,) = config.applications
    arguments = ScaleArguments.model_validate(application.args)
    assert (application.import_path, arguments.max_replicas) == ("service.scale.deployment:detector", 8)
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.request_timeout_s == 1 + Settings().request_timeout_ms / 1000
