"""A Ray cluster of several nodes on this machine, with the service as a deployment of Ray Serve."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT

BATCH_S = 0.1
# Everything that Ray starts inherits these.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "FAULTY_BATCH_S": str(BATCH_S),
}


@dataclass
class Scaled:
    """A cluster that serves."""

    cluster: Any
    workers: list[Any]
    port: int
    _ran: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, **arguments: Any) -> None:
        """Deploy, with new replicas, and wait until they are ready."""
        from ray import serve

        from service.scale.arguments import ScaleArguments
        from service.scale.deployment import detector

        serve.delete("detector")
        for file in self._ran.iterdir():
            file.unlink()
        given = {
            "detectors": "tests.support.scale_detectors:load", "device": "cpu", "max_batch_size": 1,
            "canary_interval_s": 0, "access_log": False, "health_check_period_s": 1, "look_back_s": 10.5,
            "upscale_delay_s": 1, **arguments
        }  # fmt: skip
        serve.run(detector(ScaleArguments.model_validate(given)), name="detector", route_prefix="/")

    def replicas(self) -> int:
        """Count those that take requests."""
        from ray import serve

        application = serve.status().applications["detector"]
        return int(application.deployments["detector"].replica_states.get("RUNNING", 0))

    def ran(self) -> dict[str, Counter[int]]:
        """Tell what each process has run: how often each number."""
        return {file.name: Counter(map(int, file.read_text().split())) for file in self._ran.iterdir()}

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 90) -> float:
        """Wait until the condition holds, and return the seconds that it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() < started + seconds, f"not in time: {what}"
            time.sleep(0.2)
        return time.monotonic() - started


@contextmanager
def cluster(ran: Path) -> Iterator[Scaled]:
    """Start a head that runs no replica, and three workers with room for one each; a proxy on every node that has one.

    Args:
        ran: a folder, in which each replica writes what it runs.
    """
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"SCALE_RAN": str(ran)}).items():
            patch.setenv(name, value)
        small = {"object_store_memory": 100 << 20}
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        try:
            ray.init(address=nodes.address, log_to_driver=False)
            workers = [nodes.add_node(num_cpus=1, **small) for _ in range(3)]
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            # The proxies of all nodes share the port: it is one machine.
            serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
            yield Scaled(nodes, workers, port, ran)
        finally:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
            nodes.shutdown()
