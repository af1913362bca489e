"""A device of the service: its detector, the thread that alone calls it, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from service.batch_cap import BatchCap
from service.detector import Detections, Detector, check_device, is_out_of_memory, release_memory, trim_host_memory
from service.device_thread import DeviceThread, NotDoneError
from service.images import Picture

T = TypeVar("T")
Reload = Callable[[str], Detector]
logger = logging.getLogger(__name__)

_MOST_STUCK = 3


class DeviceMemoryError(Exception):
    """The device's memory does not hold this batch. What it held of it has been given back."""


class DeviceHungError(Exception):
    """The device has not answered in time, and may never."""


class Device:
    """Runs batches, and stays usable: a thread that was killed gets a successor, one that hangs too.

    A thread cannot be killed from outside in Python. One that hangs keeps its detector, which only one thread may
    call, so its successor gets a detector of its own, loaded anew, and the stuck one ends when its call returns. Memory
    bounds how often that can be done: with three stuck threads the device is beyond repair, until one returns.

    Args:
        detector: what runs on the device.
        reload: makes another one for a device of this name; blocks.
        max_batch_size: where the bound on the batch starts.
        hang_timeout_s: a batch that takes longer hangs.
        canary_timeout_s: so does a check that takes longer.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        reload: Reload,
        max_batch_size: int,
        hang_timeout_s: float,
        canary_timeout_s: float,
    ) -> None:
        self.detector = detector
        self.cap = BatchCap(max_batch_size)
        self.failure: str | None = None  # why it does not answer; None while it does
        self._reload = reload
        self._hang_timeout_s = hang_timeout_s
        self._canary_timeout_s = canary_timeout_s
        self._thread: DeviceThread | None = None
        self._stuck: list[DeviceThread] = []
        self._held_by: DeviceThread | None = None  # the one of them that is stuck in `detector`

    @property
    def name(self) -> str:
        return self.detector.device

    @property
    def beyond_repair(self) -> bool:
        """Whether nothing but a new process can help."""
        return sum(thread.alive for thread in self._stuck) >= _MOST_STUCK

    @property
    def busy(self) -> bool:
        """Whether a call is going on in it, or hangs."""
        return any(thread.busy for thread in (*self._stuck, self._thread) if thread is not None)

    async def detect(self, pictures: Sequence[Picture]) -> list[Detections]:
        """Detections for each picture.

        Raises:
            DeviceMemoryError: too many at once; the cap has fallen.
            DeviceHungError: the device is failing now.
            Exception: whatever the detector raises, and ThreadEndedError if it ends its thread.
        """
        detector, images = self.detector, [picture.nearest for picture in pictures]
        try:
            found = await self._run(lambda: _detect(detector, images), self._hang_timeout_s)
        except DeviceMemoryError:
            self.cap.fall(len(images))
            logger.warning("%s ran out of memory; at most %d images at once for now", self.name, self.cap.now)
            raise
        if len(found) != len(images):
            raise RuntimeError(f"{len(found)} answers for {len(images)} images: this is a bug")
        self.cap.fitted(len(images))
        return found

    async def check(self) -> bool:
        """Whether it answers for a picture that cannot be at fault. Repairs what it can before it asks."""
        self._stuck = [thread for thread in self._stuck if thread.alive]
        if self.beyond_repair:
            return False
        renew = self._held_by is not None and self._held_by.alive
        reload, name, detector = self._reload, self.name, self.detector

        def work() -> Detector:
            asked = reload(name) if renew else detector
            check_device(asked)
            trim_host_memory()  # nobody is in a hurry now
            return asked

        try:
            self.detector = await self._run(work, self._hang_timeout_s if renew else self._canary_timeout_s)
        except DeviceHungError:
            logger.error("%s hangs", name)  # noqa: TRY400 - there is no more to tell
            return False
        except Exception as error:
            logger.exception("%s does not answer", name)
            self.failure = f"{name}: {type(error).__name__}"
            return False
        if self.failure is not None:
            logger.warning("%s answers again", name)
        self.failure = self._held_by = None
        return True

    def close(self) -> None:
        """Take no more work; a call that runs is left to end by itself."""
        if self._thread is not None:
            self._thread.retire()

    async def _run(self, work: Callable[[], T], timeout_s: float) -> T:
        if self._thread is None or not self._thread.alive:
            self._thread = DeviceThread(f"device-{self.name}")
        thread = self._thread
        try:
            return await thread.run(work, timeout_s=timeout_s)
        except NotDoneError:
            self._abandon(thread)
            self.failure = f"{self.name} has not answered for {timeout_s:g} s"
            raise DeviceHungError(self.failure) from None
        except asyncio.CancelledError:
            self._abandon(thread)
            raise

    def _abandon(self, thread: DeviceThread) -> None:
        """Leave it to its call, from which it may never return."""
        thread.retire()
        self._stuck.append(thread)
        if self._held_by is None or not self._held_by.alive:
            self._held_by = thread
        self._thread = None


def _detect(detector: Detector, images: Sequence[Tensor]) -> list[Detections]:
    """Runs in the device's thread."""
    try:
        return detector.detect(images)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    # The traceback is gone, and with it the tensors of the batch that did not fit.
    release_memory(detector.device)
    raise DeviceMemoryError(reason)
