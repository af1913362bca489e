"""The serving form of a detector for a device and a precision."""

from __future__ import annotations

import functools
import gc
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.agreement import agreement
from model.inference.calibration import calibration_pictures
from model.inference.errors import QuantisationError, ServingFormError
from model.inference.int8 import BUNDLED_RANGES, quantised
from model.inference.network import TorchNetwork
from model.inference.openvino import OpenVINONetwork, as_graph, difference
from model.inference.precision import (
    AUTO,
    DTYPES,
    OPENVINO,
    TORCH,
    candidates,
    check_backend,
    check_precision,
    fastest,
    has_int8,
    has_openvino,
)
from model.inference.serving import ServingModel
from model.roi_pool import MultiScaleRoIAlign
from model.weights.download import cache_folder

logger = logging.getLogger(__name__)

# The strides of the pyramid levels that RoIs are pooled from.
POOLED_STRIDES = (4, 8, 16, 32)
_TYPICAL_HW = (480, 640)
_LEAST_AGREEMENT = 0.95
_JUDGED_BY = 8  # calibration pictures, for int8
_WORTH_A_CHANGE = 1.05  # times as fast
# How alike, as a cosine, every output of the network must be to what torch computes. Sound ones in int8 are over 0.99
# with trained weights.
_LEAST_LIKENESS = {"fp32": 0.9999, "bf16": 0.98, "int8": 0.9}

Calibration = Callable[[], Sequence[Tensor]]


def serving_model(
    model: FasterRCNN,
    *,
    device: torch.device,
    precision: str = AUTO,
    backend: str = TORCH,
    calibration: Calibration | None = None,
    calibrate: bool = True,
    cache: Path | None = None,
) -> ServingModel:
    """Bring a detector to its device in the form that is fastest there.

    Args:
        model: from `model.build`; it is moved to the device, and its RoI pooling scales are pinned, as they must not
            depend on which picture happens to come first.
        precision: one of `PRECISIONS`, or "auto" for the fastest of the device, by a short measurement, if it finds
            what fp32 finds on a test picture. int8 is among them where `calibration` is given, if it finds what fp32
            finds on those pictures.
        backend: what computes the network on a CPU, "torch" or "openvino"; "auto" measures both where OpenVINO is
            installed. int8 is OpenVINO's in any case.
        calibration: gives the uint8 `[3, H, W]` pictures that int8 is fitted to; by default generated ones, and for the
            bundled weights what was found before.
        calibrate: find out what int8 needs to know of these pictures, a minute or more, where that is not kept.
        cache: folder for what calibration finds; by default that of published weights.

    Raises:
        PrecisionError: the device cannot compute in it, or by this backend.
        OpenVINOMissingError: its packages are not installed.
        QuantisationError: int8, and it does not compute what it should.
        UncalibratedError: int8 is asked for, or among what `auto` chooses from, and is not to be calibrated now.
        CalibrationError: int8, and there are no pictures.
        ServingFormError: OpenVINO is asked for, and does not compute what it should.
        UnsupportedModelError: the detector is of another architecture.
    """
    check_precision(precision, device)
    check_backend(backend, device)
    pool = model.roi_heads.box_roi_pool
    if isinstance(pool, MultiScaleRoIAlign):
        pool.pin_scales(POOLED_STRIDES)
    model = model.eval().to(device)
    cache = cache or cache_folder()
    if calibration is not None:
        calibration = functools.cache(calibration)  # they may be files to decode
    int8 = functools.partial(_int8, model, calibration, cache, calibrate=calibrate)
    if precision == "int8":
        return int8()
    with_backend = functools.partial(_with_backend, model, backend)
    if precision != AUTO:
        return with_backend(_torch_form(model, precision))
    has_choice = calibration is not None and backend != TORCH and device.type == "cpu" and has_int8()
    in_8_bits = _if_sound(int8) if has_choice else None
    forms = {name: _torch_form(model, name) for name in candidates(device)}
    chosen = _fastest_form(forms, with_backend)
    if in_8_bits is not None and calibration is not None:
        chosen = _int8_or(chosen, in_8_bits, forms["fp32"], calibration()[:_JUDGED_BY])
    forms.clear()  # the others go, and their memory
    gc.collect()
    chosen.forget()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return chosen


def _fastest_form(forms: dict[str, ServingModel], with_backend: Callable[[ServingModel], ServingModel]) -> ServingModel:
    """The fastest by measurement, if it finds what float32 finds; untrained weights, say, do not bear rounding."""
    exact = forms["fp32"]
    if len(forms) == 1:
        return with_backend(exact)
    chosen = with_backend(forms[fastest({name: _trial(form) for name, form in forms.items()})])
    if chosen.precision == "fp32" or _agrees(chosen, exact, calibration_pictures(count=1)):
        return chosen
    return with_backend(exact)


def _agrees(form: ServingModel, exact: ServingModel, pictures: Sequence[Tensor]) -> bool:
    """Whether it finds what float32 finds in these pictures, and nothing else. Tells if it does not."""
    shares = []
    for picture in pictures:
        (wanted,), (got,) = exact.detect([picture]), form.detect([picture])
        shares += [share for share in (agreement(wanted, got), agreement(got, wanted)) if share is not None]
    share = sum(shares) / len(shares) if shares else None
    if share is not None and share >= _LEAST_AGREEMENT:
        return True
    logger.info(
        "%s is not used, although it is faster: it %s",
        form.precision,
        "finds nothing to compare by" if share is None else f"finds only {share:.0%} of the same as fp32",
    )
    return False


def _trial(form: ServingModel) -> Callable[[], object]:
    """What to time a form by."""
    if form.device.type == "cuda":
        return functools.partial(form.detect, [torch.zeros(3, *_TYPICAL_HW, dtype=torch.uint8, device="cpu")])
    # A quarter of a typical picture's work is enough to see which is faster.
    height, width = (math.ceil(side / 64) * 32 for side in form.padded_hw(_TYPICAL_HW))
    return functools.partial(form.run_network, torch.zeros(1, 3, height, width, device=form.device))


def _torch_form(model: FasterRCNN, precision: str) -> ServingModel:
    device = next(model.parameters()).device
    if device.type == "cuda" and _kernels_run(device):
        from model.inference.graphs import GraphedModel

        return GraphedModel(model, precision=precision, dtype=DTYPES[precision])
    return ServingModel(model, precision=precision, dtype=DTYPES[precision])


def _with_backend(model: FasterRCNN, backend: str, form: ServingModel) -> ServingModel:
    """The form, or the same by OpenVINO where that is asked for, or there and faster."""
    if backend == TORCH or form.device.type != "cpu" or not has_openvino():
        return form
    images = _prepared(model, calibration_pictures(count=1)[0])
    try:
        network = OpenVINONetwork(as_graph(model), dtype=form.dtype, threads=torch.get_num_threads())
        problem = difference(network, form.network, images, least=_LEAST_LIKENESS[form.precision])
    except RuntimeError as error:
        problem = str(error).partition("\n")[0]
    if problem is not None:
        if backend == OPENVINO:
            raise ServingFormError(f"OpenVINO fails in {form.precision}: {problem}. Choose torch")
        logger.warning("torch computes the network, as OpenVINO fails: %s", problem)
        return form
    other = ServingModel(model, network, precision=form.precision, backend=OPENVINO, dtype=form.dtype)
    runs = {TORCH: _trial(form), OPENVINO: _trial(other)}
    return form if backend == AUTO and fastest(runs, gain=_WORTH_A_CHANGE) == TORCH else other


def _prepared(model: FasterRCNN, picture: Tensor) -> Tensor:
    """A uint8 picture as the network gets it."""
    images: Tensor = model.transform([picture.float() / 255]).tensors
    return images


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


def _int8(model: FasterRCNN, calibration: Calibration | None, cache: Path, *, calibrate: bool) -> ServingModel:
    bundled = BUNDLED_RANGES if calibration is None else None
    give = functools.cache(calibration or calibration_pictures)
    rest = candidates(torch.device("cpu"))[-1]  # what is not in 8 bits, and the box head: bf16 where it is native
    graph = quantised(model, give, cache, bundled=bundled, calibrate=calibrate)
    picture = calibration_pictures(count=1)[0] if calibration is None else give()[0]
    network = OpenVINONetwork(graph, dtype=DTYPES[rest], threads=torch.get_num_threads())
    problem = difference(network, TorchNetwork(model), _prepared(model, picture), least=_LEAST_LIKENESS["int8"])
    if problem is not None:
        raise QuantisationError(
            f"int8 fails on these weights: {problem}. Choose fp32 or bf16, or other calibration images"
        )
    return ServingModel(model, network, precision="int8", backend=OPENVINO, dtype=DTYPES[rest])


def _if_sound(form: Callable[[], ServingModel]) -> ServingModel | None:
    """The form; None if it does not compute what it should, which it tells."""
    try:
        return form()
    except QuantisationError as error:
        logger.info("%s", error)
        return None


def _int8_or(chosen: ServingModel, form: ServingModel, exact: ServingModel, pictures: Sequence[Tensor]) -> ServingModel:
    """int8, if it is faster than what is chosen and finds what float32 finds."""
    runs = {chosen.precision: _trial(chosen), form.precision: _trial(form)}
    if fastest(runs, gain=_WORTH_A_CHANGE) != form.precision:
        return chosen
    return form if _agrees(form, exact, pictures) else chosen
