"""Packed weights: a state dict in a fraction of its size, small enough to ship inside the package.

Each convolution and linear weight becomes whole numbers, one byte each, times a step of its output channel; LZMA then
codes frequent numbers in few bits. Vectors (biases, batch norm) stay float32. Reading gives the plain state dict, in
float32, so nothing else knows about packing.

The step is a share of the channel's standard deviation, not of its largest weight: rounding noise is then equally
small beside every channel's weights, and the entropy, hence the file, depends on that share alone.
"""

from __future__ import annotations

import json
import lzma
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of the standard deviation. An eighth takes about 5 bits a weight and leaves a relative error of 0.125 / sqrt(12),
# under 4 %.
DEFAULT_STEP = 0.125
_MAGIC = b"FRCNNPK1"
_SIZES = struct.Struct("<QQ")  # of the header and of the float32 values, in bytes
_LARGEST = 127
# Weights are independent of their neighbours: no context (lc, lp, pb = 0) models them best, and no match is found.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]


def pack(state_dict: Mapping[str, Tensor], info: Mapping[str, Any], *, step: float = DEFAULT_STEP) -> bytes:
    """The content of a packed file.

    Args:
        info: kept beside the tensors, as JSON.
        step: rounding step as a share of each channel's standard deviation; sets both the error and the size.
    """
    entries: list[dict[str, Any]] = []
    numbers, floats = [], []
    for key, tensor in state_dict.items():
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        entries.append({"key": key, "shape": list(values.shape)})
        if values.ndim > 1:
            whole, steps = _rounded(values, step)
            numbers.append(whole)
            floats.append(steps)
        else:
            floats.append(values)
    header = json.dumps({"info": info, "tensors": entries}).encode()
    exact = b"".join(f.astype("<f4").tobytes() for f in floats)
    coded = lzma.compress(b"".join(n.tobytes() for n in numbers), format=lzma.FORMAT_XZ, filters=_FILTERS)
    return b"".join((_MAGIC, _SIZES.pack(len(header), len(exact)), header, exact, coded))


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict, float32, and the info that `pack` was given.

    Raises:
        ValueError: this is not, or not all of, what `pack` made.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin like a packed file")
    try:
        start = len(_MAGIC) + _SIZES.size
        header_size, exact_size = _SIZES.unpack(content[len(_MAGIC) : start])
        header = json.loads(content[start : start + header_size])
        exact = np.frombuffer(content[start + header_size : start + header_size + exact_size], "<f4")
        numbers = np.frombuffer(lzma.decompress(content[start + header_size + exact_size :]), np.int8)
        return _state_dict(header["tensors"], exact, numbers), dict(header["info"])
    except (lzma.LZMAError, EOFError, struct.error, KeyError, TypeError) as error:
        raise ValueError(f"it is broken: {error}") from error


def _rounded(values: NDArray[np.float32], step: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers of the weights' shape, and a step for each output channel `[C]`."""
    rows = values.reshape(values.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    # A channel with a far outlier needs a wider step, or the outlier would be cut.
    steps = np.maximum(rows.std(axis=1) * step, largest / _LARGEST)
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
    whole = np.rint(rows / steps[:, None]).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return whole, steps


def _state_dict(
    entries: list[dict[str, Any]], exact: NDArray[np.float32], numbers: NDArray[np.int8]
) -> dict[str, Tensor]:
    state_dict: dict[str, Tensor] = {}
    exact_at = numbers_at = 0
    for entry in entries:
        shape = [int(side) for side in entry["shape"]]
        count = math.prod(shape)
        is_rounded = len(shape) > 1
        length = shape[0] if is_rounded else count
        floats = exact[exact_at : exact_at + length]
        exact_at += length
        if is_rounded:
            whole = numbers[numbers_at : numbers_at + count].reshape(shape[0], -1)
            numbers_at += count
            floats = whole.astype(np.float32) * floats[:, None]
        state_dict[str(entry["key"])] = torch.from_numpy(floats.astype(np.float32).reshape(shape).copy())
    if exact_at != exact.size or numbers_at != numbers.size:
        raise ValueError("its length is not what its header says")
    return state_dict


def relative_error(state_dict: Mapping[str, Tensor], unpacked: Mapping[str, Tensor]) -> float:
    """Norm of all rounding errors over the norm of all weights."""
    wrong = sum(float((state_dict[key].float() - tensor).square().sum()) for key, tensor in unpacked.items())
    return math.sqrt(wrong / sum(float(tensor.float().square().sum()) for tensor in state_dict.values()))
