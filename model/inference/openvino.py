"""The network by OpenVINO on a CPU (the `[openvino]` extra), in float32, bfloat16 or with layers in 8 bits.

Shapes stay open, so one compiled network serves them all: the first picture of a new shape takes what the next takes.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.faster_rcnn import FasterRCNN
from model.inference.fused_conv import FusedConv, PlainLayers
from model.inference.network import Network, NetworkOutput, TorchNetwork

if TYPE_CHECKING:
    import openvino

_LEVELS = 4  # of the outputs are pyramid levels; the others are predictions
_NEARLY_ZERO = 1e-6
_TALKATIVE = ("openvino", "torch.utils.cpp_extension")  # the last, which OpenVINO imports, misses CUDA


class OpenVINONetwork:
    """A network, compiled for this CPU. One call at a time: outputs lie in its own memory until the next.

    Args:
        graph: from `as_graph`, or `quantised`.
        dtype: of the arithmetic that is not in 8 bits, and of the pyramid: float32 or bfloat16.
        threads: to compute with.
    """

    def __init__(self, graph: openvino.Model, *, dtype: torch.dtype, threads: int) -> None:
        self._dtype = dtype
        self._compiled = _core().compile_model(
            _with_levels_in_bfloat16(graph) if dtype == torch.bfloat16 else graph,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            },
        )
        self._request = self._compiled.create_infer_request()

    def __call__(self, images: Tensor) -> NetworkOutput:
        results = self._request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        outputs = [torch.from_numpy(results[output]) for output in self._compiled.outputs]
        # NumPy has no bfloat16, so OpenVINO gives its bits as another type of two bytes.
        levels = [level.view(self._dtype) for level in outputs[:_LEVELS]]
        return NetworkOutput(levels=levels, predictions=outputs[_LEVELS:])


@functools.cache
def _core() -> openvino.Core:
    """OpenVINO, which stays until the process ends.

    It gives the thread that first asks for the CPU a stack for signals. Let go in another thread, it would free that
    stack and leave it in use (2026.4): the next signal, such as Ctrl-C, would end the process.
    """
    import openvino

    return openvino.Core()


def as_graph(model: FasterRCNN) -> openvino.Model:
    """The static part of `model`, for any number and size of images.

    Args:
        model: in eval mode, on the CPU.

    Raises:
        UnsupportedModelError: see `TorchNetwork`.
    """
    network = _Outputs(_with_biases(TorchNetwork(model, layers=PlainLayers()))).eval()
    example = torch.zeros(1, 3, 32, 32, device="cpu")
    with _quiet(), torch.no_grad():
        import openvino

        # Traced here, as OpenVINO would run the trace twice more to check it.
        traced = torch.jit.trace(network, example, check_trace=False)
        return openvino.convert_model(traced, example_input=example, input=[-1, 3, -1, -1])


def _with_levels_in_bfloat16(graph: openvino.Model) -> openvino.Model:
    """The graph, changed in place: its pyramid takes half the bytes, as the box head computes in bfloat16 anyway."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    processor = PrePostProcessor(graph)
    for level in range(_LEVELS):
        processor.output(level).tensor().set_element_type(Type.bf16)
    return processor.build()


@torch.inference_mode()
def difference(network: Network, reference: Network, images: Tensor, *, least: float) -> str | None:
    """Where a network computes something else than the reference, in words; None if it does not.

    Args:
        images: `[N, 3, H, W]`, normalised.
        least: how alike every output must be, as a cosine.
    """
    got, wanted = network(images), reference(images)
    for kind, ours, theirs in (
        ("pyramid level", got.levels, wanted.levels),
        ("RPN output of level", got.predictions, wanted.predictions),
    ):
        for level, (some, right) in enumerate(zip(ours, theirs, strict=True)):
            likeness = float(nn.functional.cosine_similarity(some.flatten().float(), right.flatten().float(), dim=0))
            if not likeness >= least:
                return f"{kind} {level} is like torch's by {likeness:.4g}, where {least} is the least"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of the conversion about its own inner workings."""
    levels: dict[str, Any] = {name: logging.getLogger(name).level for name in _TALKATIVE}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _with_biases(network: TorchNetwork) -> TorchNetwork:
    """Every bias a number that is not quite zero.

    OpenVINO drops a bias of zeros, and computes nothing but zeros for a quantised convolution without a bias whose
    result is transposed (2026.4): an untrained pyramid has such ones.
    """
    for module in network.modules():
        if isinstance(module, FusedConv) and module.bias is not None:
            module.bias[module.bias == 0] = _NEARLY_ZERO
    return network


class _Outputs(nn.Module):
    """The network with a flat tuple of outputs, as OpenVINO wants it."""

    def __init__(self, network: TorchNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network(images)
        return (*output.levels, *output.predictions)
