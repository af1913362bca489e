"""An exponential moving average of the weights: it is steadier than the weights and usually detects better."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """The average of a model's state dict over about the last `1 / (1 - decay)` updates.

    Early on the window is shorter, so that the untrained start is soon forgotten.

    Args:
        decay: 0 makes the average the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state_dict = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                floats[0].append(self.state_dict[key])
                floats[1].append(tensor)
            else:
                self.state_dict[key].copy_(tensor)
        get_ema_multi_avg_fn(decay)(*floats, 0)  # all tensors in a few launches, where a GPU holds them

    def load(self, state_dict: Mapping[str, Tensor], updates: int) -> None:
        for key, tensor in self.state_dict.items():
            tensor.copy_(state_dict[key])
        self.updates = updates
