"""Which ground-truth box, if any, each anchor or proposal is trained towards."""

from __future__ import annotations

import torch
from torch import Tensor

BACKGROUND = -1  # overlap under the low threshold with every box: a negative example
IGNORED = -2  # between the thresholds: neither a positive nor a negative example


class Matcher:
    """Assign to each candidate the ground-truth box it overlaps most, or `BACKGROUND`, or `IGNORED`.

    Args:
        high_threshold: overlap from which a candidate is matched.
        low_threshold: overlap under which it is background.
        allow_low_quality_matches: give every ground-truth box the candidates (ties included) that overlap it most,
            however little. The RPN needs it: no anchor may reach the threshold on a small or slender object.
    """

    def __init__(self, high_threshold: float, low_threshold: float, *, allow_low_quality_matches: bool = False) -> None:
        if low_threshold > high_threshold:
            raise ValueError(f"the low threshold {low_threshold} is over the high one, {high_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, overlaps: Tensor) -> Tensor:
        """IoU `[G, R]` to the index of a ground-truth box, or a negative code, for each candidate `[R]`, int64.

        Without ground truth (G = 0) every candidate is background.

        Raises:
            ValueError: there are no candidates to match.
        """
        truths, candidates = overlaps.shape
        if candidates == 0:
            raise ValueError("there are no anchors or proposals to match with the ground truth")
        if truths == 0:
            return torch.full((candidates,), BACKGROUND, dtype=torch.int64, device=overlaps.device)
        best_overlap, best_truth = overlaps.max(dim=0)
        matches = best_truth.clone()
        matches[best_overlap < self.high_threshold] = IGNORED
        matches[best_overlap < self.low_threshold] = BACKGROUND
        if self.allow_low_quality_matches:
            # A rescued candidate takes the box that *it* overlaps most, which need not be the one that rescued it.
            best_of_truth = overlaps.amax(dim=1, keepdim=True)
            rescued = (overlaps == best_of_truth).any(dim=0)
            matches[rescued] = best_truth[rescued]
        return matches
