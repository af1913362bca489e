"""What the replicas of the tests load: the detector of `faulty_app`, with a file of each process for what it ran."""

from __future__ import annotations

import os
from pathlib import Path

from service.devices.detector import Detector
from service.settings import Settings
from tests.support import faulty_app


def load(settings: Settings) -> list[Detector]:
    os.environ["FAULTY_RAN"] = str(Path(os.environ["SCALE_RAN"]) / str(os.getpid()))
    return faulty_app.load(settings)
