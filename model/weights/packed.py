"""Packed weights: a state dict in a fraction of its size, small enough to ship inside the package.

Each convolution and linear weight becomes whole numbers, one byte each, times a step of its output channel; LZMA then
codes frequent numbers in few bits. Vectors (biases, batch norm) stay float32. Reading gives the plain state dict, in
float32, so nothing else knows about packing.

The step is a share of the channel's standard deviation, not of its largest weight: rounding noise is then equally
small beside every channel's weights, and the entropy, which decides the size of the file, depends on that share alone.
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
_MAGIC, _VERSION = b"FRCNNPK", b"1"
_SIZES = struct.Struct("<QQ")  # of the header and of the float32 values, in bytes
_LARGEST = 127
_MOST_WEIGHTS = 1 << 29  # that a file may claim; a dozen times those of the detector that this package is for
_CODER_MEMORY = 1 << 26  # bytes that LZMA may take; its dictionary here needs some 2 MB
# In one call for all weights, Python would not handle Ctrl-C for seconds. A third of a second to code, less to decode.
_PIECE_BYTES = 1 << 18
# Weights are independent of their neighbours: no context (lc, lp, pb = 0) models them best, and no match is found.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]


def pack(state_dict: Mapping[str, Tensor], info: Mapping[str, Any], *, step: float = DEFAULT_STEP) -> bytes:
    """The content of a packed file.

    Args:
        info: kept beside the tensors, as JSON.
        step: rounding step as a share of each channel's standard deviation; sets both the error and the size.

    Raises:
        ValueError: a weight is infinite or not a number.
    """
    entries: list[dict[str, Any]] = []
    numbers, floats = [], []
    for key, tensor in state_dict.items():
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        entries.append({"key": key, "shape": list(values.shape)})
        if not np.isfinite(values).all():
            raise ValueError(f"{key} holds values that are infinite or not numbers")
        if values.ndim > 1:
            whole, steps = _rounded(values, step)
            numbers.append(whole)
            floats.append(steps)
        else:
            floats.append(values)
    header = json.dumps({"info": info, "tensors": entries}).encode()
    exact = b"".join(f.astype("<f4").tobytes() for f in floats)
    coded = _coded(b"".join(n.tobytes() for n in numbers))
    return b"".join((_MAGIC, _VERSION, _SIZES.pack(len(header), len(exact)), header, exact, coded))


def _coded(content: bytes) -> bytes:
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, filters=_FILTERS)
    pieces = (content[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES))
    return b"".join([*map(compressor.compress, pieces), compressor.flush()])


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict, float32, and the info that `pack` was given.

    Raises:
        ValueError: this is not, or not all of, what `pack` made.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("it does not begin like a packed file")
    begin = len(_MAGIC) + len(_VERSION)
    if (version := content[len(_MAGIC) : begin]) != _VERSION:
        raise ValueError(f"it is of version {version!r} of the format; this program reads {_VERSION!r}")
    try:
        start = begin + _SIZES.size
        header_size, exact_size = _SIZES.unpack(content[begin:start])
        header = json.loads(content[start : start + header_size])
        shapes = _shapes(header["tensors"])
        exact = np.frombuffer(content[start + header_size : start + header_size + exact_size], "<f4")
        numbers = _decoded(
            memoryview(content)[start + header_size + exact_size :],
            sum(math.prod(shape) for shape in shapes.values() if len(shape) > 1),
        )
        return _state_dict(shapes, exact, numbers), dict(header["info"])
    except (lzma.LZMAError, EOFError, struct.error, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is broken: {error}") from error


def _shapes(entries: Any) -> dict[str, list[int]]:
    """The tensors' shapes by key, as the header lists them; whole sizes, no key twice, and no more than is sane."""
    shapes: dict[str, list[int]] = {}
    for entry in entries:
        key, shape = entry["key"], entry["shape"]
        if not isinstance(key, str) or key in shapes:
            raise ValueError(f"its header lists the tensor {key!r} twice, or not by name")
        if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"its header gives {key} the shape {shape}")
        shapes[key] = shape
    if sum(math.prod(shape) for shape in shapes.values()) > _MOST_WEIGHTS:
        raise ValueError(f"its header claims more than {_MOST_WEIGHTS:,} weights")
    return shapes


def _decoded(coded: memoryview, count: int) -> NDArray[np.int8]:
    """The `count` whole numbers; a few bytes can stand for gigabytes, so no more than these are ever decoded."""
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_CODER_MEMORY)
    decoded, taken = bytearray(), 0
    while taken < len(coded) and not decoder.eof and len(decoded) <= count:
        piece = coded[taken : taken + _PIECE_BYTES]
        decoded += decoder.decompress(piece, max_length=count + 1 - len(decoded))
        taken += len(piece)
    if len(decoded) != count or not decoder.eof or decoder.unused_data or taken < len(coded):
        raise ValueError("its length is not what its header says")
    return np.frombuffer(decoded, np.int8)


def _rounded(values: NDArray[np.float32], step: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers of the weights' shape, and a step for each output channel `[C]`."""
    if values.size == 0:
        return values.astype(np.int8), np.ones(values.shape[0], np.float32)
    rows = values.reshape(values.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    # A channel with a far outlier needs a wider step, or the outlier would be cut.
    steps = np.maximum(rows.std(axis=1) * step, largest / _LARGEST)
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32)
    whole = np.rint(rows / steps[:, None]).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return whole, steps


def _state_dict(
    shapes: Mapping[str, list[int]], exact: NDArray[np.float32], numbers: NDArray[np.int8]
) -> dict[str, Tensor]:
    state_dict: dict[str, Tensor] = {}
    exact_at = numbers_at = 0
    for key, shape in shapes.items():
        count = math.prod(shape)
        is_rounded = len(shape) > 1
        length = shape[0] if is_rounded else count
        floats = exact[exact_at : exact_at + length]
        exact_at += length
        if exact_at > exact.size:
            break
        if is_rounded:
            whole = numbers[numbers_at : numbers_at + count].reshape(shape[0], count // max(1, shape[0]))
            numbers_at += count
            floats = whole.astype(np.float32) * floats[:, None]
        state_dict[key] = torch.from_numpy(floats.astype(np.float32).reshape(shape).copy())
    if exact_at != exact.size or numbers_at != numbers.size:
        raise ValueError("its length is not what its header says")
    return state_dict
