"""Readings of the GPUs by their driver: utilisation, power, temperature."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from service.devices.background import in_background

logger = logging.getLogger(__name__)

Readings = Mapping[str, float]
_PATIENCE_S = 1.0
_READERS: dict[str, Callable[[str], float]] = {
    "utilization_ratio": lambda device: torch.cuda.utilization(device) / 100,
    "power_watts": lambda device: torch.cuda.power_draw(device) / 1000,
    "temperature_celsius": torch.cuda.temperature,
}


def gpu_readings(device: str) -> Readings:
    """A GPU's readings by their names with their units; those that it tells. Of a CPU, none. May block.

    Without nvidia-ml-py there are none either.
    """
    if torch.device(device).type != "cuda":
        return {}
    told: dict[str, float] = {}
    for name, read in _READERS.items():
        try:
            told[name] = float(read(device))
        except Exception as error:  # noqa: BLE001 - the driver's own: a part of a GPU (MIG), for one, tells no utilisation
            logger.debug("%s tells no %s: %s", device, name, error)
    return told


class GPUReadings:
    """The latest readings of the devices. `refresh` reads them; a driver that hangs delays nobody.

    Args:
        read: tells those of a device; blocks.
    """

    def __init__(self, read: Callable[[str], Readings] = gpu_readings) -> None:
        self.latest: dict[str, Readings] = {}
        self._read = read
        self._reading: asyncio.Task[dict[str, Readings]] | None = None

    async def refresh(self, devices: Sequence[str]) -> None:
        """Read them in a thread, for which the end of the process does not wait.

        What is not told within a second is absent, until the driver has answered.
        """
        gpus = [device for device in devices if device != "cpu"]
        if not gpus:
            return
        if self._reading is None:
            self._reading = asyncio.create_task(
                in_background(partial(self._read_all, gpus), name="readings", is_heavy=False)
            )
        done, _ = await asyncio.wait({self._reading}, timeout=_PATIENCE_S)
        self.latest = self._reading.result() if done else {}
        if done:
            self._reading = None

    def _read_all(self, devices: Sequence[str]) -> dict[str, Readings]:
        return {device: self._read(device) for device in devices}
