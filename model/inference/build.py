"""The serving form of a detector for a device and a precision."""

from __future__ import annotations

import functools
import gc
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.agreement import agreement
from model.inference.calibration import calibration_pictures
from model.inference.network import TorchNetwork
from model.inference.openvino import OpenVINONetwork, check_fidelity, quantised
from model.inference.precision import AUTO, DTYPES, candidates, check_precision, fastest
from model.inference.serving import ServingModel
from model.roi_pool import MultiScaleRoIAlign
from model.weights.download import cache_folder

logger = logging.getLogger(__name__)

# The strides of the pyramid levels that RoIs are pooled from.
POOLED_STRIDES = (4, 8, 16, 32)
_TYPICAL_HW = (480, 640)
_LEAST_AGREEMENT = 0.95


def serving_model(
    model: FasterRCNN,
    *,
    device: torch.device,
    precision: str = AUTO,
    calibration: Callable[[], list[Tensor]] = calibration_pictures,
    cache: Path | None = None,
) -> ServingModel:
    """Bring a detector to its device in the form that is fastest there.

    Args:
        model: from `model.build`; it is moved to the device, and its RoI pooling scales are pinned, as they must not
            depend on which picture happens to come first.
        precision: one of `PRECISIONS`, or "auto" for the fastest of the device, by a short measurement, if it finds
            what fp32 finds on a test picture.
        calibration: gives the uint8 `[3, H, W]` pictures that int8 is fitted to; by default generated ones.
        cache: folder for quantised networks; by default that of published weights.

    Raises:
        PrecisionError: the device cannot compute in it.
        OpenVINOMissingError: int8, and its packages are not installed.
        QuantisationError: int8, and it does not compute what it should.
        CalibrationError: int8, and there are no pictures.
        UnsupportedModelError: the detector is of another architecture.
    """
    check_precision(precision, device)
    pool = model.roi_heads.box_roi_pool
    if isinstance(pool, MultiScaleRoIAlign):
        pool.pin_scales(POOLED_STRIDES)
    model = model.eval().to(device)
    if precision == "int8":
        return _int8(model, calibration, cache or cache_folder())
    if precision != AUTO:
        return _torch_form(model, precision)
    forms = {name: _torch_form(model, name) for name in candidates(device)}
    chosen = _fastest_form(forms, device)
    forms.clear()  # the others go, and their memory
    gc.collect()
    chosen.forget()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return chosen


def _fastest_form(forms: dict[str, ServingModel], device: torch.device) -> ServingModel:
    """The fastest by measurement, if it finds what float32 finds; untrained weights, say, do not bear rounding."""
    exact = forms["fp32"]
    if len(forms) == 1:
        return exact
    chosen = forms[fastest({name: _trial(form, device) for name, form in forms.items()})]
    if chosen is exact:
        return exact
    pictures = calibration_pictures(count=1)
    (wanted,), (got,) = exact.detect(pictures), chosen.detect(pictures)
    share = agreement(wanted, got)
    if share is not None and share >= _LEAST_AGREEMENT:
        return chosen
    logger.info(
        "fp32 is used, although %s is faster: it %s",
        chosen.precision,
        "finds nothing to compare by" if share is None else f"finds only {share:.0%} of the same on a test picture",
    )
    return exact


def _trial(form: ServingModel, device: torch.device) -> Callable[[], object]:
    """What to time a form by."""
    if device.type == "cuda":
        return functools.partial(form.detect, [torch.zeros(3, *_TYPICAL_HW, dtype=torch.uint8, device="cpu")])
    # A quarter of a typical picture's work is enough to see which is faster.
    height, width = (math.ceil(side / 64) * 32 for side in form.padded_hw(_TYPICAL_HW))
    return functools.partial(form.run_network, torch.zeros(1, 3, height, width, device=device))


def _torch_form(model: FasterRCNN, precision: str) -> ServingModel:
    device = next(model.parameters()).device
    if device.type == "cuda" and _kernels_run(device):
        from model.inference.graphs import GraphedModel

        return GraphedModel(model, precision=precision, dtype=DTYPES[precision])
    return ServingModel(model, precision=precision, dtype=DTYPES[precision])


@functools.cache
def _kernels_run(device: torch.device) -> bool:
    """Whether Triton works on this GPU: it needs a C compiler, for one, and a folder to write to."""
    try:
        from model.inference.kernels.nms import nms_mask

        with torch.cuda.device(device):
            nms_mask(torch.zeros(1, 1, 4, device=device), torch.ones(1, 1, dtype=torch.bool, device=device), 0.5)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the plain form does without
        logger.warning("%s serves without CUDA graphs, slower, as Triton's kernels do not run there: %s", device, error)
        return False
    return True


def _int8(model: FasterRCNN, calibration: Callable[[], list[Tensor]], cache: Path) -> ServingModel:
    pictures = calibration()
    network = OpenVINONetwork(quantised(model, pictures, cache), threads=torch.get_num_threads())
    check_fidelity(network, TorchNetwork(model), model.transform([pictures[0].float() / 255]).tensors)
    rest = candidates(torch.device("cpu"))[-1]  # of the box head's two layers: bf16 where it is native
    return ServingModel(model, network, precision="int8", dtype=DTYPES[rest])
