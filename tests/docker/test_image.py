"""The image, by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest

from tests.support.stacks import run

pytestmark = pytest.mark.docker

LOCKED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
QUICK = ["--env", "FRCNN_WEIGHTS=bundled", "--env", "FRCNN_PRECISION=fp32", "--env", "FRCNN_MAX_BATCH_SIZE=1"]
# Patterns of what only a GPU needs, of the files under /opt.
CUDA = [
    "torch/nvidia",
    "torch/cuda",
    "torch/triton",
    *(f"torch/torch/lib/*{name}*" for name in ("cuda", "nvshmem", "nvrtc")),
]


# Gives the container's name and its address.
Container = Callable[[], AbstractContextManager[tuple[str, str]]]


@pytest.fixture
def container(image: str) -> Container:
    """`with container(): ...`: the service in a container that may do nothing, at an address."""

    @contextmanager
    def start() -> Iterator[tuple[str, str]]:
        name = run("docker", "run", "--detach", *LOCKED, *QUICK, "--publish", "127.0.0.1::8000", image).strip()
        try:
            yield name, f"http://{run('docker', 'port', name, '8000').splitlines()[0]}"
        finally:
            run("docker", "rm", "--force", "--volumes", name)

    return start


def state(name: str) -> dict[str, Any]:
    return dict(json.loads(run("docker", "inspect", "--format", "{{json .State}}", name)))


def test_it_answers_with_no_right_to_anything(container: Container, picture: bytes) -> None:
    with container() as (name, url):
        give_up = time.monotonic() + 300
        while state(name)["Health"]["Status"] != "healthy":
            assert time.monotonic() < give_up, run("docker", "logs", name)
            time.sleep(0.5)
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        reply = httpx.post(f"{url}/detect", files={"file": ("a.jpg", picture)}, timeout=120)
        assert reply.status_code == 200
        assert reply.json()["boxes"]
        assert run("docker", "exec", name, "id", "-u").strip() == "10001"
        assert run("docker", "exec", name, "sh", "-c", "touch /opt/app/x 2>&1 || echo refused").endswith("refused\n")
        capabilities = run("docker", "exec", name, "grep", "CapEff", "/proc/1/status")
        assert int(capabilities.split()[1], 16) == 0
        run("docker", "stop", "--time", "60", name)
        assert state(name)["ExitCode"] == 0


def test_it_hears_the_signal_while_it_starts(container: Container) -> None:
    with container() as (name, _):
        started = time.monotonic()
        run("docker", "stop", "--time", "60", name)
        # Killed by it, or ended as asked: but not by SIGKILL after a minute.
        assert state(name)["ExitCode"] in {0, 143}
        assert time.monotonic() - started < 30


def test_it_is_small_but_for_cuda(image: str) -> None:
    def sizes(of: str, command: str) -> list[int]:
        """Bytes as they lie on a disk, and as a registry keeps and sends them."""
        counts = [f"{command} | wc -c", f"{command} | gzip | wc -c"]
        return [int(run("docker", "run", "--rm", "--user=0", "--entrypoint=sh", of, "-c", count)) for count in counts]

    without = " ".join(f"--exclude='{pattern}'" for pattern in CUDA)
    ours = sizes(image, f"tar -C /opt {without} -c torch dependencies app")
    below = sizes("python:3.11-slim", "tar -C / -c bin etc lib lib64 root sbin usr var")
    for name, (unpacked, packed) in {"ours": ours, "system and Python": below}.items():
        print(f"RECORD without CUDA, {name}: {packed / 1e6:.0f} MB packed, {unpacked / 1e6:.0f} MB unpacked")
    assert ours[1] + below[1] < 500e6


def test_it_says_what_it_is(image: str) -> None:
    config = json.loads(run("docker", "inspect", "--format", "{{json .Config}}", image))
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == "faster-rcnn-service"
    assert "/readyz" in config["Healthcheck"]["Test"][-1]
    assert list(config["Volumes"]) == ["/var/lib/frcnn/cache"]
