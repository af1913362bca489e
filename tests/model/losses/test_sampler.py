from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler as TheirSampler

from model.losses.sampler import BalancedPositiveNegativeSampler


def labels_of(positives: int, negatives: int, ignored: int) -> Tensor:
    values = [1.0] * positives + [0.0] * negatives + [-1.0] * ignored
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    return torch.tensor(values)[order]


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn"),
    [
        (50, 50, (5, 15)),  # a quarter of 20 at most
        (2, 50, (2, 18)),  # negatives fill up
        (0, 50, (0, 20)),
        (50, 3, (5, 3)),  # positives do not
        (0, 0, (0, 0)),
    ],
)
def test_counts(positives: int, negatives: int, drawn: tuple[int, int]) -> None:
    labels = labels_of(positives, negatives, ignored=9)
    positive, negative = BalancedPositiveNegativeSampler(20, 0.25)(labels)
    assert (len(positive), len(negative)) == drawn
    assert (labels[positive] == 1).all()
    assert (labels[negative] == 0).all()
    for indices in (positive, negative):
        assert indices.tolist() == sorted(set(indices.tolist()))


def test_any_class_is_positive() -> None:
    positive, negative = BalancedPositiveNegativeSampler(4, 1.0)(torch.tensor([0, 7, -1, 2, -2]))
    assert positive.tolist() == [1, 3]
    assert negative.tolist() == [0]


def test_the_seed_decides_and_different_seeds_differ() -> None:
    labels = labels_of(100, 100, 0)
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(torch.cat(BalancedPositiveNegativeSampler(20, 0.5)(labels)).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("positives", "negatives"), [(40, 60), (3, 60), (0, 60), (40, 2)])
def test_draws_what_torchvision_draws(positives: int, negatives: int) -> None:
    labels = labels_of(positives, negatives, ignored=5)
    torch.manual_seed(8)
    (positive_mask,), (negative_mask,) = TheirSampler(20, 0.5)([labels])
    after = torch.rand(1)
    torch.manual_seed(8)
    positive, negative = BalancedPositiveNegativeSampler(20, 0.5)(labels)
    assert torch.equal(positive, torch.where(positive_mask)[0])
    assert torch.equal(negative, torch.where(negative_mask)[0])
    assert torch.equal(torch.rand(1), after)
