"""Names and shapes of the tensors are torchvision's, in both directions and in old spellings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models.detection as oracle

from model import fasterrcnn_resnet50_fpn
from model.faster_rcnn import FasterRCNN, modern_key
from model.weights.checkpoints import WeightsError, load_strictly
from tests.support.oracle import Pair, StateDict, make_frozen_pair, opinionated_state


def shapes(state: StateDict) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()]


def old_spelling(state: StateDict) -> StateDict:
    """The keys as torchvision wrote them before 0.13."""
    renamed = {}
    for key, tensor in state.items():
        old = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for level in range(4):
            old = old.replace(f"_blocks.{level}.0.", f"_blocks.{level}.")
        renamed[old] = tensor
    return renamed


def assert_same_tensors(state: StateDict, expected: StateDict) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def state() -> StateDict:
    return opinionated_state(11)


@pytest.fixture
def blank() -> FasterRCNN:
    return fasterrcnn_resnet50_fpn(num_classes=11)


@pytest.fixture
def frozen_pair() -> Pair:
    return make_frozen_pair()


@pytest.mark.parametrize("num_classes", [91, 3])
def test_keys_order_shapes_and_types_with_live_norm(num_classes: int) -> None:
    theirs = oracle.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    ours = fasterrcnn_resnet50_fpn(num_classes=num_classes)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_keys_order_shapes_and_types_with_frozen_norm(frozen_pair: Pair) -> None:
    theirs, ours = frozen_pair
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert len(ours.state_dict()) == 295  # as many as the official checkpoint has


def test_ours_loads_into_torchvisions(state: StateDict, blank: FasterRCNN) -> None:
    theirs = oracle.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=11)
    theirs.load_state_dict(blank.state_dict(), strict=True)
    assert_same_tensors(theirs.state_dict(), blank.state_dict())


def test_old_spelling_differs_in_the_rpn_and_the_pyramid(state: StateDict) -> None:
    changed = set(old_spelling(state)) - set(state)
    assert "rpn.head.conv.weight" in changed
    assert "backbone.fpn.inner_blocks.0.weight" in changed
    assert "backbone.fpn.layer_blocks.3.bias" in changed
    assert len(changed) == 2 + 2 * 8
    assert {modern_key(key) for key in old_spelling(state)} == set(state)


@pytest.mark.parametrize("spelling", [dict, old_spelling])
@pytest.mark.parametrize("how", ["load_state_dict", "load_strictly", "within another module"])
def test_both_spellings_load(
    how: str, spelling: Callable[[StateDict], StateDict], state: StateDict, blank: FasterRCNN
) -> None:
    given = spelling(state)
    if how == "load_state_dict":
        blank.load_state_dict(given, strict=True)
    elif how == "load_strictly":
        load_strictly(blank, given, source="test")
    else:
        outer = torch.nn.ModuleDict({"detector": blank})
        outer.load_state_dict({f"detector.{key}": tensor for key, tensor in given.items()}, strict=True)
    assert_same_tensors(blank.state_dict(), state)
    assert given.keys() == spelling(state).keys()  # the caller's dict is left alone


@pytest.mark.parametrize("how", ["load_state_dict", "load_strictly"])
def test_live_norms_counters_mean_nothing_to_frozen_norm(how: str, state: StateDict, frozen_pair: Pair) -> None:
    _, ours = frozen_pair
    counted = {key for key in state if key.endswith("num_batches_tracked")}
    assert len(counted) == 53
    assert not counted & ours.state_dict().keys()
    if how == "load_state_dict":
        ours.load_state_dict(state, strict=True)
    else:
        load_strictly(ours, state, source="test")
    assert_same_tensors(ours.state_dict(), {key: state[key] for key in state if key not in counted})


@pytest.mark.parametrize("how", ["load_state_dict", "load_strictly"])
def test_frozen_norms_state_loads_into_live_norm(how: str, blank: FasterRCNN, frozen_pair: Pair) -> None:
    theirs, _ = frozen_pair
    given = theirs.state_dict()
    if how == "load_state_dict":
        blank.load_state_dict(given, strict=True)
    else:
        load_strictly(blank, given, source="test")
    loaded = blank.state_dict()
    assert_same_tensors({key: loaded[key] for key in given}, given)


def test_every_misfit_is_told_and_nothing_is_loaded(state: StateDict, blank: FasterRCNN) -> None:
    before = {key: tensor.clone() for key, tensor in blank.state_dict().items()}
    given = dict(state)
    del given["backbone.body.conv1.weight"], given["rpn.head.cls_logits.bias"]
    given["roi_heads.cube_head.weight"] = torch.zeros(2, 3)
    given["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError) as caught:
        load_strictly(blank, given, source="some.pth")
    message = str(caught.value)
    assert message.splitlines() == [
        "some.pth does not fit the model in 4 places:",
        "  missing: backbone.body.conv1.weight [64, 3, 7, 7]",
        "  missing: rpn.head.cls_logits.bias [3]",
        "  unexpected: roi_heads.cube_head.weight [2, 3]",
        "  misshapen: roi_heads.box_predictor.cls_score.bias is [7], the model has [11]",
    ]
    assert_same_tensors(blank.state_dict(), before)
