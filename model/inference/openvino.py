"""The network in 8-bit integers on a CPU, by OpenVINO, quantised by NNCF (the `[openvino]` extra): all but its first
and last layer.

Quantising needs pictures like those to come, to see how large activations get, and takes a minute or so; the result is
kept in a file. Shapes stay open, so one compiled model serves them all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.faster_rcnn import FasterRCNN
from model.inference.errors import QuantisationError
from model.inference.fused_conv import FusedConv, PlainLayers
from model.inference.network import Network, NetworkOutput, TorchNetwork

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

_FORM = 4  # raise it when the network's graph changes, so that files of another form are not read
_LEVELS = 4  # of the outputs are pyramid levels; the others are predictions
# The first layer, which sees the pictures' own values, and the last, which gives the RPN's logits and deltas: 4 % more
# time, and boxes that lie a quarter nearer to float32's.
_NOT_QUANTISED = [r".*network\.stem/.*", r".*network\.predictor/.*"]
_NEARLY_ZERO = 1e-6
# How alike, as a cosine, every output must be to what float32 gives. Sound ones are over 0.99 with trained weights.
_LEAST_LIKENESS = 0.9


class OpenVINONetwork:
    """A quantised network, compiled for this CPU. One call at a time: outputs lie in its own memory until the next.

    Args:
        model: from `quantised`.
        threads: to compute with.
    """

    def __init__(self, model: openvino.Model, *, threads: int) -> None:
        import openvino

        self._compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                # What is not quantised: the first and last layers, the additions between layers and the outputs.
                "INFERENCE_PRECISION_HINT": "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "f32",
            },
        )
        self._request = self._compiled.create_infer_request()

    def __call__(self, images: Tensor) -> NetworkOutput:
        results = self._request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        outputs = [torch.from_numpy(results[output]) for output in self._compiled.outputs]
        return NetworkOutput(levels=outputs[:_LEVELS], predictions=outputs[_LEVELS:])


@torch.inference_mode()
def check_fidelity(network: Network, reference: Network, images: Tensor) -> None:
    """Refuse a quantised network that went wrong, whether in quantising or in compiling for this processor.

    Raises:
        QuantisationError: an output is unlike the reference's.
    """
    got, wanted = network(images), reference(images)
    for kind, ours, theirs in (
        ("pyramid level", got.levels, wanted.levels),
        ("RPN output of level", got.predictions, wanted.predictions),
    ):
        for level, (some, right) in enumerate(zip(ours, theirs, strict=True)):
            likeness = float(nn.functional.cosine_similarity(some.flatten(), right.flatten(), dim=0))
            if not likeness >= _LEAST_LIKENESS:
                raise QuantisationError(
                    f"int8 fails on these weights: {kind} {level} is like float32's by {likeness:.2f}, where "
                    f"{_LEAST_LIKENESS} is the least. Choose fp32 or bf16, or other calibration images"
                )


def quantised(model: FasterRCNN, pictures: Sequence[Tensor], folder: Path) -> openvino.Model:
    """The static part of `model` in int8, from a file of `folder` if it was quantised on these pictures before.

    Args:
        model: in eval mode, on the CPU.
        pictures: uint8 `[3, H, W]`; some dozens of what it will see.
        folder: where results are kept.

    Raises:
        UnsupportedModelError: see `TorchNetwork`.
    """
    import openvino

    path = folder / f"frcnn-int8-{_fingerprint(model, pictures)}.xml"
    if path.is_file():
        try:
            return openvino.Core().read_model(path)
        except RuntimeError as error:
            logger.warning("%s cannot be read and is made again: %s", path, error)
    logger.warning("the network is quantised to int8, once: this takes minutes")
    quantised_model = _quantise(model, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    # The weights first, and each file in one piece: a process that finds the .xml finds all of it.
    partial = folder / f"{path.stem}.{os.getpid()}.xml"
    openvino.save_model(quantised_model, partial, compress_to_fp16=False)
    partial.with_suffix(".bin").replace(path.with_suffix(".bin"))
    partial.replace(path)
    return quantised_model


def _quantise(model: FasterRCNN, pictures: Sequence[Tensor]) -> openvino.Model:
    with _quiet():
        import nncf
        import openvino

        network = _Outputs(_with_biases(TorchNetwork(model, layers=PlainLayers()))).eval()
        with torch.no_grad():
            example = torch.zeros(1, 3, 128, 160, device="cpu")
            converted = openvino.convert_model(network, example_input=example, input=[-1, 3, -1, -1])
        dataset = nncf.Dataset(pictures, lambda picture: model.transform([picture.float() / 255]).tensors.numpy())
        result: openvino.Model = nncf.quantize(
            converted,
            dataset,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(pictures),
            ignored_scope=nncf.IgnoredScope(patterns=_NOT_QUANTISED),
        )
    return result


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


def _fingerprint(model: FasterRCNN, pictures: Sequence[Tensor]) -> str:
    """Of everything that decides the result."""
    digest = hashlib.sha256(f"{_FORM} {version('openvino')} {version('nncf')}".encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(("backbone.", "rpn.")):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    norms = [module.eps for module in model.backbone.modules() if hasattr(module, "eps")]
    digest.update(repr((norms, model.transform)).encode())
    for picture in pictures:
        digest.update(repr(tuple(picture.shape)).encode())
        digest.update(picture.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _quiet() -> Iterator[None]:
    """Conversion and quantisation talk of their own inner workings, and print bars where a command prints JSON."""
    levels: dict[str, Any] = {name: logging.getLogger(name).level for name in ("nncf", "openvino")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
