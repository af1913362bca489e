"""Drawing a balanced few of very many candidates for a loss."""

from __future__ import annotations

import torch
from torch import Tensor


class BalancedPositiveNegativeSampler:
    """Draw up to `batch_size_per_image` candidates of an image, at most a fixed share of them positive.

    Nearly all of 200,000 anchors are background; a loss over all of them would learn to say no.

    Args:
        batch_size_per_image: how many candidates to draw. Negatives fill up where positives are few.
        positive_fraction: the largest share of positives.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from one image's candidates.

        Args:
            labels: `[R]`; 1 or more is positive, 0 negative, less than 0 never drawn.

        Returns:
            The indices of the positives and of the negatives drawn, each in rising order.
        """
        positive = torch.where(labels >= 1)[0]
        negative = torch.where(labels == 0)[0]
        num_positive = min(int(self.batch_size_per_image * self.positive_fraction), positive.numel())
        num_negative = min(self.batch_size_per_image - num_positive, negative.numel())
        return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(indices: Tensor, count: int) -> Tensor:
    # One permutation of all candidates, always drawn: seeds then mean the same as in torchvision.
    chosen = torch.randperm(indices.numel(), device=indices.device)[:count]
    return indices[chosen].sort().values
