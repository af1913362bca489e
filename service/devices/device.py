"""A device of the service: its detector, the threads that alone call it, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

from torch import Tensor

from service.devices.batch_cap import BatchCap
from service.devices.canary import KnownAnswer, WrongAnswerError, ask, check_answer, known_picture
from service.devices.detector import Detections, Detector, Known, Launched, Pipelined
from service.devices.device_thread import DeviceThread, WorkTimeoutError
from service.devices.memory import is_out_of_memory, release_memory, trim_host_memory
from service.images.pictures import Picture

T = TypeVar("T")
Reload = Callable[[str], Detector]
logger = logging.getLogger(__name__)

_MOST_STUCK = 3
_DEPTH = 2  # batches that a pipelined detector has in flight


class DeviceMemoryError(Exception):
    """The device's memory does not hold this batch. What it held of it has been given back."""


class DeviceHungError(Exception):
    """The device has not answered in time, and may never."""


@dataclass(eq=False, slots=True)
class InFlight:
    """A batch that a device has taken."""

    detector: Detector
    images: list[Tensor]
    launched: Launched | None  # None where the detector does everything in one call, which has not begun


class Device:
    """Runs batches, and stays usable: a thread that was killed gets a successor, one that hangs too.

    One thread calls the detector. Another waits for the batches that a `Pipelined` detector has launched, so that the
    first is free to launch the next. On such a device a batch hangs when it is not done within the time from the end of
    the one before.

    A thread cannot be killed from outside in Python. One that hangs keeps its detector, which only one thread may
    call, so its successor gets a new detector of its own, and the stuck one ends when its call returns. Memory
    bounds how often that can be done: with three stuck threads the device is beyond repair, until one returns.

    A detector that no longer gives the known answer is replaced once, as its weights may have been damaged in memory.

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
        self._turn, self._wait_turn = asyncio.Lock(), asyncio.Lock()  # each thread does one thing at a time
        self._thread: DeviceThread | None = None
        self._waiter: DeviceThread | None = None
        self._stuck: list[DeviceThread] = []
        self._held_by: DeviceThread | None = None  # the one of them that is stuck in `detector`
        known_picture()  # drawn now: it would be part of the first check's time
        self._known = detector.known_answer if isinstance(detector, Known) else None
        self._is_wrong = False  # the last answer to the known picture was
        self._replaced = False  # since it has been wrong

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
        return any(thread.busy for thread in (*self._stuck, self._thread, self._waiter) if thread is not None)

    @property
    def depth(self) -> int:
        """Batches that may be in flight at a time."""
        return 1 if pipelined(self.detector) is None else _DEPTH

    def switch(self, detector: Detector, known: KnownAnswer) -> None:
        """Run the next batch on another detector. What is in flight ends on the old one.

        Args:
            detector: of the same device.
            known: what it has answered to the known picture.
        """
        self.detector, self._known = detector, known
        self.failure = self._held_by = None
        self._is_wrong = self._replaced = False

    async def detect(self, pictures: Sequence[Picture]) -> list[Detections]:
        """Detections for each picture. Raises what `launch` and `finish` raise."""
        return await self.finish(await self.launch(pictures))

    async def launch(self, pictures: Sequence[Picture]) -> InFlight:
        """Give the device a batch. Batches are to be finished in the order of their launch.

        Raises: see `finish`.
        """
        detector, images = self.detector, [picture.device_pixels for picture in pictures]
        ahead = pipelined(detector)
        if ahead is None:
            return InFlight(detector, images, None)
        return InFlight(detector, images, await self._for_batch(len(images), lambda: ahead.launch(images)))

    async def finish(self, batch: InFlight) -> list[Detections]:
        """Detections for each picture of a batch.

        Raises:
            DeviceMemoryError: too many at once; the cap has fallen.
            DeviceHungError: the device is failing now.
            Exception: whatever the detector raises, and ThreadEndedError if it ends its thread.
        """
        detector, images, launched = batch.detector, batch.images, batch.launched
        if launched is None:
            found = await self._for_batch(len(images), lambda: detector.detect(images))
        else:
            await self._for_batch(len(images), launched.wait, waiting=True)
            found = await self._for_batch(len(images), launched.fetch)
        if len(found) != len(images):
            raise RuntimeError(f"{len(found)} answers for {len(images)} images: this is a bug")
        self.cap.fitted(len(images))
        return found

    async def prepare(self) -> bool:
        """Let the detector use idle time for what makes later batches faster. False when there is nothing to do."""
        ahead = pipelined(self.detector)
        if ahead is None:
            return False
        try:
            return await self._run(lambda: _within_memory(self.name, ahead.prepare), self._hang_timeout_s)
        except DeviceMemoryError as error:
            logger.warning("%s has no memory to prepare for other shapes: %s", self.name, error)
        except DeviceHungError:
            logger.error("%s hangs", self.name)  # noqa: TRY400 - there is no more to tell
        except Exception:
            logger.exception("%s cannot prepare for other shapes", self.name)
        return False

    async def check(self) -> bool:
        """Whether it gives the known answer to the known picture. Repairs what it can before it asks."""
        self._stuck = [thread for thread in self._stuck if thread.alive]
        if self.beyond_repair:
            return False
        replace = self._is_wrong and not self._replaced
        renew = replace or (self._held_by is not None and self._held_by.alive)
        reload, name, detector, known = self._reload, self.name, self.detector, self._known
        self._replaced = self._replaced or replace

        def work() -> tuple[Detector, KnownAnswer]:
            asked = reload(name) if renew else detector
            answer = _checked(asked, known)
            trim_host_memory()  # no caller waits now
            return asked, answer

        try:
            asked, answer = await self._run(work, self._hang_timeout_s if renew else self._canary_timeout_s)
        except DeviceHungError:
            logger.error("%s hangs", name)  # noqa: TRY400 - there is no more to tell
            return False
        except WrongAnswerError as error:
            if self.detector is not detector:
                return True  # another one has come meanwhile
            logger.error("%s answers wrongly to the known picture: %s", name, error)  # noqa: TRY400 - nor here
            self.failure = f"{name} answers wrongly: {error}"
            self._is_wrong = True
            return False
        except Exception as error:
            logger.exception("%s does not answer", name)
            self.failure = f"{name}: {type(error).__name__}"
            return False
        if self.detector is not detector:
            return True
        self.detector, self._known = asked, answer
        if self.failure is not None:
            logger.warning("%s answers again", name)
        self.failure = self._held_by = None
        self._is_wrong = self._replaced = False
        return True

    def close(self) -> None:
        """Take no more work; a call that runs ends on its own."""
        for thread in (self._thread, self._waiter):
            if thread is not None:
                thread.retire()

    async def _for_batch(self, size: int, work: Callable[[], T], *, waiting: bool = False) -> T:
        """`_run`, for a batch of this size: it raises DeviceMemoryError where that does not fit."""
        name = self.name
        try:
            return await self._run(lambda: _within_memory(name, work), self._hang_timeout_s, waiting=waiting)
        except DeviceMemoryError:
            self.cap.fall(size)
            logger.warning("%s ran out of memory; at most %d images at once for now", name, self.cap.now)
            raise

    async def _run(self, work: Callable[[], T], timeout_s: float, *, waiting: bool = False) -> T:
        """Have it done by the detector's thread, or by the one that waits for its batches."""
        async with self._wait_turn if waiting else self._turn:
            if waiting:
                thread = self._waiter = _alive(self._waiter, f"wait-{self.name}")
            else:
                thread = self._thread = _alive(self._thread, f"device-{self.name}")
            try:
                return await thread.run(work, timeout_s=timeout_s)
            except WorkTimeoutError:
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
        if thread is self._waiter:
            self._waiter = None
        else:
            self._thread = None


@cache
def _is_pipelined(kind: type[Detector]) -> bool:
    return issubclass(kind, Pipelined)  # checking a protocol takes longer than all else that is done for a picture


def pipelined(detector: Detector) -> Pipelined | None:
    """The detector, if its device works without the host."""
    return cast(Pipelined, detector) if _is_pipelined(type(detector)) else None


def _checked(detector: Detector, known: KnownAnswer | None) -> KnownAnswer:
    """The known answer, which the detector has just given; its first answer if none is known."""
    if known is None:
        return ask(detector)
    check_answer(detector, known)
    return known


def _alive(thread: DeviceThread | None, name: str) -> DeviceThread:
    return DeviceThread(name) if thread is None or not thread.alive else thread


def _within_memory(device: str, work: Callable[[], T]) -> T:
    """Runs in the device's threads.

    Raises:
        DeviceMemoryError: in place of what says that memory ran out.
        Exception: what else `work` raises.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    # The traceback is gone, and with it the tensors of the batch that did not fit.
    release_memory(device)
    raise DeviceMemoryError(reason)
