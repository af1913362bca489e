"""A Docker engine, and the image on it."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest

from tests.support.stacks import run


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips the test where no engine answers."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("needs a Docker engine")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image, built: in seconds where its layers are there."""
    run("docker", "build", "--tag", "faster-rcnn-service", ".")
    return "faster-rcnn-service"


@pytest.fixture(scope="session")
def picture(image: str) -> bytes:
    """One that `frcnn sample` of the image drew."""
    draw = "frcnn sample --output /tmp >/dev/null && base64 /tmp/sample_0.jpg"
    drawn = run("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", draw)
    return base64.b64decode(drawn)
