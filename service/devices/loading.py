"""From settings to detectors: devices, weights, serving forms, and what the operator should know of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch

from model.architectures import architecture_named
from model.build import from_checkpoint, resolve_checkpoint
from model.inference.errors import ServingFormError
from model.inference.precision import check_backend, check_precision
from model.weights.checkpoints import WeightsError, WeightsUnavailableError
from model.weights.names import AUTO, BUNDLED, RANDOM
from service.devices.canary import ask
from service.devices.cores import compute_threads
from service.devices.detector import Detector, ModelInfo
from service.devices.gpus import DetectorError, device_caveat, parse_devices
from service.devices.model_detector import LARGEST_GPU_BATCH, GPUDetector, ModelDetector
from service.settings import Settings

logger = logging.getLogger(__name__)

# Errors that the operator can fix; the message says how.
LOAD_ERRORS = (DetectorError, WeightsError, WeightsUnavailableError)


def load_detectors(settings: Settings) -> list[Detector]:
    """One detector per device, each with its own copy of the weights, and each having answered once.

    Raises:
        DetectorError, WeightsError, WeightsUnavailableError: with what to do about it.
    """
    devices = parse_devices(settings.device)
    check_arithmetic(settings, devices)
    torch.set_num_threads(compute_threads(devices))
    wanted = architecture_named(settings.model)
    checkpoint = resolve_checkpoint(settings.weights, wanted, tell=lambda text: logger.warning("%s", text))
    checkpoint = checkpoint.named(settings.class_names)
    model = from_checkpoint(checkpoint)
    info = ModelInfo(
        checkpoint.architecture.name,
        checkpoint.name,
        checkpoint.categories,
        iou_threshold=model.roi_heads.nms_thresh,
        version=checkpoint.version,
    )
    if AUTO in {settings.precision, settings.backend, settings.max_batch_size}:
        logger.info(
            "measuring what is fastest here, for some seconds; nothing is measured where --precision, --backend and "
            "--max-batch-size are all given"
        )
    detectors: list[Detector] = []
    for device in devices:
        own = model if len(devices) == 1 else copy.deepcopy(model)
        kind = GPUDetector if device.startswith("cuda") else ModelDetector
        detector = kind(own, info, device=device, settings=settings)
        if settings.max_batch_size == AUTO:
            detector.measure_batch_size()
        if isinstance(detector, GPUDetector):
            detector.get_ready(min(batch_size(settings, [detector]), LARGEST_GPU_BATCH))
        detector.known_answer = ask(detector)  # by the graphs that will be asked again
        detectors.append(detector)
        logger.info(
            "%s weights, version %s, are on %s in %s by %s, best %d at a time",
            info.weights, info.version, device, detector.precision, detector.backend, detector.best_batch_size,
        )  # fmt: skip
    # The log has what `auto` fell back to, with the reason.
    about_weights = None if settings.weights == AUTO else weights_caveat(settings.weights, info)
    for caveat in (about_weights, device_caveat(settings.device, devices)):
        if caveat:
            logger.warning("%s", caveat)
    return detectors


def batch_size(settings: Settings, detectors: Sequence[Detector]) -> int:
    """Most pictures in one batch, of all the detectors."""
    if settings.max_batch_size != "auto":
        return settings.max_batch_size
    return min(detector.best_batch_size for detector in detectors)


def weights_caveat(asked: str, info: ModelInfo) -> str | None:
    """A warning about the weights that are served, if they are not what a caller expects.

    Args:
        asked: the `--weights` argument.
        info: what is served.
    """
    if info.weights == RANDOM:
        return "the weights are random and untrained: what they find means nothing"
    if asked == AUTO and info.weights == BUNDLED:
        names = ", ".join(info.categories.objects().values())
        return (
            f"the COCO weights could not be fetched: the bundled detector serves and finds only {names}. "
            "For everyday objects restart it with a network, or set FRCNN_WEIGHTS to a file"
        )
    return None


def check_arithmetic(settings: Settings, devices: Sequence[str]) -> None:
    """Tell that a device cannot do as asked before anything large is fetched or read.

    Raises:
        DetectorError: with what it can do.
    """
    try:
        for device in devices:
            check_precision(settings.precision, torch.device(device))
            check_backend(settings.backend, torch.device(device))
    except ServingFormError as error:
        raise DetectorError(str(error)) from error
