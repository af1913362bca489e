from __future__ import annotations

import pytest
from torchvision.models import detection

from model.architectures import ARCHITECTURES, FASTERRCNN_RESNET50_FPN, architecture_named, architecture_of
from model.build import untrained


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_known_by_torchvisions_keys(name: str) -> None:
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3)
    assert architecture_of(theirs.state_dict()) is ARCHITECTURES[name]
    ours = untrained(ARCHITECTURES[name], num_classes=3)
    assert architecture_of(ours.state_dict()) is ARCHITECTURES[name]
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_what_is_neither_counts_as_the_first() -> None:
    assert architecture_of({"fc.weight"}) is FASTERRCNN_RESNET50_FPN
    assert architecture_named(None) is None
