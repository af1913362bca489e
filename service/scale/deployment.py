"""The application that `serve run` and `serve deploy` build.

    serve run service.scale.deployment:detector weights=auto max_replicas=4

(Without postponed annotations: Serve reads the builder's, to check the arguments by it.)
"""

import os

import ray
from ray import serve

from service.scale.arguments import ScaleArguments
from service.scale.replica import Replica


def detector(arguments: ScaleArguments) -> serve.Application:
    """The service as a deployment of its own, `detector`."""
    gpus = arguments.gpus(in_cluster=_gpus_in_cluster())
    behind_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    options = arguments.deployment_options(gpus=gpus, behind_haproxy=behind_haproxy)
    deployment = serve.deployment(serve.ingress()(Replica), name="detector", **options)
    settings, load = arguments.replica_settings(gpus=gpus), arguments.loader()
    return deployment.bind(settings, load, decode_threads=arguments.decode_threads)


def _gpus_in_cluster() -> float:
    """`serve run` builds before it connects to Ray: then we connect for the question, and leave the rest to it."""
    connected = ray.is_initialized()
    if not connected:
        ray.init()
    try:
        return float(ray.cluster_resources().get("GPU", 0))
    finally:
        if not connected:
            ray.shutdown()
