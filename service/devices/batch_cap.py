"""How many images fit into a device's memory at once, learnt from what did not."""

from __future__ import annotations

_BATCHES_TO_RAISE = 20


class BatchCap:
    """A bound that falls when memory runs out, and rises again slowly.

    It falls to half of the batch that did not fit, rounded up. After every 20 full batches that did fit it rises by
    one, up to `most`: what took the memory may have gone, and a batch that does not fit costs no answer, only time.

    Args:
        most: where it starts, and never rises above.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._fitted = 0

    @property
    def lowered(self) -> bool:
        return self.now < self.most

    def fall(self, batch_size: int) -> None:
        """A batch of this size did not fit."""
        self.now = min(self.now, -(-batch_size // 2))
        self._fitted = 0

    def fitted(self, batch_size: int) -> None:
        """A batch of this size did fit."""
        if not self.lowered or batch_size < self.now:
            return  # it says nothing of a larger one
        self._fitted += 1
        if self._fitted >= _BATCHES_TO_RAISE:
            self.now += 1
            self._fitted = 0
