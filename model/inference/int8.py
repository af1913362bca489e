"""The network in 8-bit integers on a CPU, by OpenVINO: all but its first and last layer.

The weights say themselves how large they get. How large activations get, pictures like those to come must show: NNCF
looks at them, which takes a minute or so, and says where to round to 8 bits and within which range. That is some
kilobytes for a detector, which are kept in a file. Those of the bundled detector are part of the package:

    python -m model.inference.int8      # finds them again and writes them there, after a change of the network
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.activation_ranges import Rounding, roundings_of
from model.inference.calibration import calibration_pictures
from model.inference.errors import UncalibratedError
from model.inference.openvino import as_graph
from model.weights.whole_files import replacing

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

BUNDLED_RANGES = Path(__file__).parents[1] / "bundled" / "blood_cells.int8.json"
_FORM = 5  # raise it when the network's graph changes, so that files of another form are not read
# The first layer, which sees the pictures' own values, and the last, which gives the RPN's logits and deltas: 4 % more
# time, and boxes that lie a quarter nearer to float32's.
_NOT_QUANTISED = ("network.stem/", "network.predictor/")
_LEVELS, _LARGEST = 256, 127
_TELL_EVERY = 8  # pictures


@dataclass(frozen=True, slots=True)
class Ranges:
    """What calibration has found for one detector.

    Attributes:
        detector: the fingerprint of its weights.
        roundings: one for each activation.
    """

    detector: str
    roundings: tuple[Rounding, ...]

    @classmethod
    def read(cls, path: Path) -> Ranges:
        """Raises ValueError, TypeError, KeyError, OSError: it is not such a file."""
        document = json.loads(path.read_text())
        return cls(
            detector=document["detector"],
            roundings=tuple(Rounding.of(item) for item in document["roundings"]),
        )

    def write(self, path: Path) -> None:
        """Write all of it or nothing.

        Raises:
            OSError: it cannot be written.
        """
        lines = ",\n".join(json.dumps(asdict(rounding)) for rounding in self.roundings)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with replacing(path, partial):
            partial.write_text(f'{{"detector": "{self.detector}", "roundings": [\n{lines}\n]}}\n')


def quantised(
    model: FasterRCNN,
    calibration: Callable[[], Sequence[Tensor]],
    folder: Path,
    *,
    bundled: Path | None = None,
    calibrate: bool = True,
) -> openvino.Model:
    """The static part of `model` with layers in 8 bits. The ranges come from a file if they were found before.

    Args:
        model: in eval mode, on the CPU.
        calibration: gives uint8 `[3, H, W]` pictures; some dozens of what it will see.
        folder: where ranges are kept.
        bundled: ranges to take where they are of this detector.
        calibrate: look for ranges, a minute or more, where none are kept.

    Raises:
        UncalibratedError: none are kept, and none are to be looked for.
        UnsupportedModelError: see `TorchNetwork`.
    """
    detector, graph = _fingerprint(model), functools.cache(lambda: as_graph(model))
    if bundled is not None and (ranges := _kept(bundled, detector, graph)):
        return _with_ranges(graph(), ranges)
    pictures = calibration()
    path = folder / f"frcnn-int8-{_fingerprint_of_pictures(detector, pictures)}.json"
    ranges = _kept(path, detector, graph)
    if ranges is None:
        if not calibrate:
            raise UncalibratedError("int8 is not calibrated yet")
        ranges = Ranges(detector, calibrated(model, graph(), pictures))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ranges.write(path)
        except OSError as error:
            logger.warning("each load of int8 calibrates it again, as its ranges cannot be kept: %s", error)
    return _with_ranges(graph(), ranges)


def calibrated(model: FasterRCNN, graph: openvino.Model, pictures: Sequence[Tensor]) -> tuple[Rounding, ...]:
    """What these pictures show of `model`, whose graph is `as_graph`'s.

    Raises:
        QuantisationError: see `roundings_of`.
    """
    logger.warning("int8 is being calibrated on %d pictures: this takes a minute or more", len(pictures))
    count = itertools.count(1)

    def tell() -> None:
        if (looked := next(count)) % _TELL_EVERY == 0:
            logger.info("int8 is being calibrated: picture %d of %d", looked, len(pictures))

    images = (model.transform([picture.float() / 255]).tensors.numpy() for picture in pictures)
    ignored = [f".*{layer}.*" for layer in _NOT_QUANTISED]
    return roundings_of(graph, images, ignored=ignored, threads=torch.get_num_threads(), looked=tell)


def _kept(path: Path, detector: str, graph: Callable[[], openvino.Model]) -> Ranges | None:
    """The ranges in a file, if they are of this detector and name what is in its graph, which takes seconds to make."""
    if not path.is_file():
        return None
    try:
        ranges = Ranges.read(path)
    except (ValueError, TypeError, KeyError, OSError) as error:
        logger.warning("%s cannot be read and is made again: %s", path, error)
        return None
    if ranges.detector != detector:
        return None
    there = {node.get_friendly_name() for node in graph().get_ops()}
    if not all({rounding.source, *(name for name, _ in rounding.targets)} <= there for rounding in ranges.roundings):
        logger.warning("%s is of another version of OpenVINO, and is made again", path)
        return None
    return ranges


def _with_ranges(graph: openvino.Model, ranges: Ranges) -> openvino.Model:
    """The graph, changed in place."""
    from openvino import op, opset8

    nodes = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
    for rounding in ranges.roundings:
        low, high = np.float32(rounding.low), np.float32(rounding.high)
        output = nodes[rounding.source].output(0)
        rounded = opset8.fake_quantize(output, low, high, low, high, levels=_LEVELS).output(0)
        for name, index in rounding.targets:
            nodes[name].input(index).replace_source_output(rounded)
    for name, node in nodes.items():
        if node.get_type_name() == "Convolution" and not any(layer in name for layer in _NOT_QUANTISED):
            weight = node.input_value(1).get_node().data
            scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True).clip(min=np.finfo(np.float32).tiny) / _LARGEST
            small = op.Constant(np.rint(weight / scale).astype(np.int8))  # `opset8.constant` makes a list: 2 s for all
            node.input(1).replace_source_output(opset8.multiply(opset8.convert(small, "f32"), scale).output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def _fingerprint(model: FasterRCNN) -> str:
    """Of all of a detector that its ranges depend on."""
    digest = hashlib.sha256(f"{_FORM}".encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(("backbone.", "rpn.")):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    norms = [module.eps for module in model.backbone.modules() if hasattr(module, "eps")]
    digest.update(repr((norms, model.transform)).encode())
    return digest.hexdigest()[:16]


def _fingerprint_of_pictures(detector: str, pictures: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(f"{detector} {version('openvino')} {version('nncf')}".encode())
    for picture in pictures:
        digest.update(repr(tuple(picture.shape)).encode())
        digest.update(picture.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    from model.build import from_checkpoint, resolve_checkpoint

    bundled = from_checkpoint(resolve_checkpoint("bundled")).eval()
    found = calibrated(bundled, as_graph(bundled), calibration_pictures())
    Ranges(_fingerprint(bundled), found).write(BUNDLED_RANGES)
