"""The rule that every tensor is created on a device that is named."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = {
    getattr(torch, name)
    for name in (
        *(
            "arange",
            "as_tensor",
            "bartlett_window",
            "blackman_window",
            "empty",
            "empty_permuted",
            "empty_strided",
            "eye",
        ),
        *("full", "hamming_window", "hann_window", "kaiser_window", "linspace", "logspace", "ones", "rand", "randint"),
        *("randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
    )
}


class NoDefaultDevice(TorchFunctionMode):
    """Raise where our code creates a tensor without a device. Constructors of modules call factories too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        takes_device_of_input = func is torch.as_tensor and isinstance(args[0], torch.Tensor)
        if func in _FACTORIES and kwargs.get("device") is None and not takes_device_of_input:
            # torchvision's operators bring such tensors to the device of their input.
            caller = sys._getframe(1).f_globals["__name__"]
            assert caller.startswith("torchvision."), f"{caller} calls torch.{func.__name__} without a device"
        return func(*args, **kwargs)
