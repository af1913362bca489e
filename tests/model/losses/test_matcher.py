from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher as TheirMatcher

from model.losses.matcher import BACKGROUND, IGNORED, Matcher


@pytest.mark.parametrize(
    ("overlap", "match"),
    [(0.9, 0), (0.7, 0), (0.69, IGNORED), (0.3, IGNORED), (0.29, BACKGROUND), (0.0, BACKGROUND)],
)
def test_thresholds_belong_to_the_better_side(overlap: float, match: int) -> None:
    # In float64, where 0.7 is the threshold itself.
    assert Matcher(0.7, 0.3)(torch.tensor([[overlap]], dtype=torch.float64)).tolist() == [match]


def test_each_candidate_takes_the_box_it_overlaps_most() -> None:
    overlaps = torch.tensor([[0.8, 0.1, 0.6], [0.75, 0.9, 0.2]])
    assert Matcher(0.5, 0.5)(overlaps).tolist() == [0, 1, 0]


def test_low_quality_matches_rescue_every_best_candidate_ties_included() -> None:
    overlaps = torch.tensor([[0.2, 0.1, 0.2, 0.0]])
    assert Matcher(0.7, 0.3)(overlaps).tolist() == [BACKGROUND] * 4
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps).tolist() == [0, BACKGROUND, 0, BACKGROUND]


def test_a_rescued_candidate_takes_the_box_that_it_overlaps_most_itself() -> None:
    # Candidate 0 is the best that box 1 has, but overlaps box 0 more.
    overlaps = torch.tensor([[0.5, 0.9], [0.4, 0.1]])
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps).tolist() == [0, 0]


def test_without_ground_truth_everything_is_background() -> None:
    matches = Matcher(0.7, 0.3, allow_low_quality_matches=True)(torch.zeros(0, 3))
    assert matches.tolist() == [BACKGROUND] * 3
    assert matches.dtype is torch.int64


def test_the_overlaps_are_left_alone() -> None:
    overlaps = torch.tensor([[0.2, 0.1]])
    Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps)
    assert torch.equal(overlaps, torch.tensor([[0.2, 0.1]]))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"low threshold 0\.8 is over the high one, 0\.7"):
        Matcher(0.7, 0.8)
    with pytest.raises(ValueError, match="no anchors or proposals"):
        Matcher(0.7, 0.3)(torch.zeros(2, 0))


@given(
    # Few distinct values, so that ties and exact thresholds come up.
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    low_quality=st.booleans(),
)
def test_equals_torchvisions(rows: int, low_quality: bool) -> None:
    overlaps = torch.tensor(rows)
    ours = Matcher(0.75, 0.25, allow_low_quality_matches=low_quality)
    theirs = TheirMatcher(0.75, 0.25, allow_low_quality_matches=low_quality)
    assert torch.equal(ours(overlaps), theirs(overlaps))
