"""`fasterrcnn_resnet50_fpn_v2` in bf16 finds what it finds in float32, with weights that have learnt something."""

from __future__ import annotations

import pytest
import torch

from model.architectures import FASTERRCNN_RESNET50_FPN_V2
from model.build import from_checkpoint, random_checkpoint, resolve_checkpoint
from model.data.synthetic import SyntheticData
from model.inference.agreement import agreement
from model.inference.build import serving_model
from model.training.processes import Processes
from model.training.run import RunRequest, run_training
from model.training.settings import TrainSettings
from model.training.trainer import BEST_NAME
from model.weights.checkpoints import Checkpoint, CheckpointInfo, bundled_is_present, read_checkpoint
from tests.support.calls import record

CPU = torch.device("cpu")
SIZE_HW = (160, 224)
pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built"),
]


def start() -> Checkpoint:
    """The second version as far as the bundled detector, which is of the first, has its parts: body, pyramid and RPN.

    The pyramid's biases become those of its batch norms, which are the identity otherwise, as is the RPN head's second
    convolution. The box head has learnt nothing.
    """
    bundled = resolve_checkpoint("bundled")
    state = dict(random_checkpoint(architecture=FASTERRCNN_RESNET50_FPN_V2).state_dict)
    for key, tensor in bundled.state_dict.items():
        if key.startswith("backbone.fpn.") and key.endswith(".bias"):
            state[key.replace(".0.bias", ".1.bias")] = tensor
        elif not key.startswith("roi_heads.box_head."):
            state[key] = tensor
    identity = torch.zeros(256, 256, 3, 3)
    identity[range(256), range(256), 1, 1] = 1
    state |= {"rpn.head.conv.1.0.weight": identity, "rpn.head.conv.1.0.bias": torch.zeros(256)}
    return Checkpoint(name="start", state_dict=state, info=CheckpointInfo(class_names=bundled.info.class_names))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its box head has learnt from drawn blood cells, by the training program."""
    folder = tmp_path_factory.mktemp("second") / "run"
    height, width = SIZE_HW
    settings = TrainSettings(
        iterations=30,
        batch_size=1,
        learning_rate=0.01,
        warmup=3,
        precision="fp32",
        trainable_layers=0,
        min_size=height,
        max_size=width,
        rpn_samples=32,
        roi_samples=32,
        proposals=100,
        detection_proposals=100,
        average_decay=0.0,
    )
    data = SyntheticData(count=16, size_hw=SIZE_HW)
    request = RunRequest(data=data, validation=None, begin=start(), settings=settings, folder=folder)
    run_training(request, Processes(rank=0, count=1, device=CPU), print)
    return read_checkpoint(folder / BEST_NAME)


def test_bfloat16_finds_what_float32_finds(trained: Checkpoint) -> None:
    """Nine tenths of it: after so short a training many scores are near one half, where agreement begins to count."""
    exact, short = (
        serving_model(from_checkpoint(trained), device=CPU, precision=precision) for precision in ("fp32", "bf16")
    )
    pictures = SyntheticData("test", count=8, size_hw=SIZE_HW)
    shares, sure = [], 0
    for index in range(len(pictures)):
        picture = pictures[index][0]
        (wanted,), (got,) = exact.detect([picture]), short.detect([picture])
        sure += int((wanted["scores"] > 0.5).sum())
        shares += [share for share in (agreement(wanted, got), agreement(got, wanted)) if share is not None]
    record(f"v2, trained briefly: fp32 and bf16 share {sum(shares) / len(shares):.1%} of {sure} detections")
    assert sure > 20, "what finds little proves nothing"
    assert sum(shares) / len(shares) >= 0.9
