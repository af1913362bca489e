"""What one image reserves of the budgets: its pixels on the device, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Callable

from service.api.job import Job
from service.errors import QueueFullError
from service.images.pictures import Picture, Pixels

# Of a pixel of a picture that is drawn: Pillow's image has four, and the file grows to four while it is written.
_DRAWING_BYTES = 8


class NoRoomError(Exception):
    """The pixels of an image, or the memory for it, could not be reserved."""

    def __init__(self, rejection: Callable[[], QueueFullError]) -> None:
        super().__init__()
        self.rejection = rejection  # is made on the event loop


class Reservation:
    """What one image has reserved: its permits for pixels and for memory.

    Its memory is reserved at once, for decoding or for drawing, whichever takes more, and shrinks as that goes on: an
    image that has begun never waits for memory that another one holds. The part of its pixels is released when they
    are freed.

    Args:
        job: the image's request.
        is_drawn: whether the picture is kept, and drawn.
    """

    def __init__(self, job: Job, *, is_drawn: bool) -> None:
        self._job = job
        self._is_drawn = is_drawn
        self._pixels, self.memory = job.pixels_permit(), job.memory_permit()

    def reserve(self, size_wh: tuple[int, int], working_bytes: int, *, device_pixels: int | None = None) -> None:
        """Reserve what an image takes, or nothing. Any thread may call this.

        Args:
            size_wh: of the upright image.
            working_bytes: what its decoder needs beside the pixels.
            device_pixels: what it counts on the device; by default that of its size.

        Raises:
            NoRoomError: it does not fit now.
        """
        admission = self._job.service.admission
        own = size_wh[0] * size_wh[1]
        pixels = self._job.batcher.pixels(*size_wh) if device_pixels is None else device_pixels
        memory = 3 * own + max(working_bytes, self._drawing_bytes(own))
        # Not reserved and given back: images that wait for one of the two would wake each other without end.
        if not self._pixels.fits(pixels):
            raise NoRoomError(admission.pixels_full)
        if not (self.memory.fits(memory) and self._pixels.reserve(pixels)):
            raise NoRoomError(admission.memory_full)
        if not self.memory.reserve(memory):  # another thread was faster
            self._pixels.shrink(0)
            raise NoRoomError(admission.memory_full)

    async def reserve_when_free(self, size_wh: tuple[int, int], working_bytes: int) -> None:
        """`reserve`, and wait until others have released enough."""
        while True:
            with self._job.service.admission.release() as released:
                try:
                    self.reserve(size_wh, working_bytes)
                except NoRoomError:
                    await released
                else:
                    return

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        """Memory for the pixels, out of what is reserved."""
        pixels = self._job.batcher.allocate(shape)
        self._job.keep_with(pixels, self.memory.split(pixels.nbytes))
        return pixels

    def decoded(self, picture: Picture) -> Picture:
        """Give back what decoding alone needed, and send the picture on its way."""
        self.memory.shrink(self._drawing_bytes(picture.size_hw[0] * picture.size_hw[1]))
        return self._job.batcher.upload_early(picture)

    def release(self) -> None:
        """Release all but the memory of the pixels."""
        self._pixels.release()
        self.memory.release()

    def _drawing_bytes(self, pixels: int) -> int:
        return _DRAWING_BYTES * pixels if self._is_drawn else 0
