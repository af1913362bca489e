from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.batches import aspect_bin, batches, shard_seed, shards


def test_every_image_comes_once_in_an_epoch() -> None:
    seen = Counter(index for batch in islice(batches([(480, 640)] * 12, 4, seed=0), 6) for index in batch)
    assert set(seen.values()) == {2}


def test_batches_are_of_one_aspect_ratio_but_for_an_epochs_last() -> None:
    sizes = [(480, 640)] * 42 + [(640, 480)] * 22
    drawn = list(islice(batches(sizes, 4, seed=1), 16 * 5))
    mixed = [batch for batch in drawn if len({aspect_bin(sizes[index]) for index in batch}) > 1]
    assert len(mixed) == 5
    assert set(Counter(index for batch in drawn for index in batch).values()) == {5}


@given(
    landscape=st.integers(0, 30), portrait=st.integers(1, 9), square=st.integers(0, 1), batch_size=st.integers(1, 12)
)
def test_no_image_comes_twice_in_a_batch_and_all_come_as_often(
    landscape: int, portrait: int, square: int, batch_size: int
) -> None:
    sizes = [(480, 640)] * landscape + [(640, 480)] * portrait + [(480, 480)] * square
    drawn = list(islice(batches(sizes, batch_size, seed=1), 20))
    assert {len(batch) for batch in drawn} == {batch_size}
    if len(sizes) >= batch_size:
        assert all(len(set(batch)) == batch_size for batch in drawn)
    seen = Counter(index for batch in drawn for index in batch)
    often = [seen[index] for index in range(len(sizes))]
    assert max(often) - min(often) <= 2


def test_a_rare_aspect_ratio_is_learned_among_others() -> None:
    sizes = [(480, 640)] * 20 + [(640, 480)]
    with_it = [batch for batch in islice(batches(sizes, 8, seed=0), 60) if 20 in batch]
    assert len(with_it) >= 60 * 8 // 21
    assert all(batch.count(20) == 1 for batch in with_it)


def test_the_order_is_the_seeds() -> None:
    sizes = [(480, 640)] * 20
    assert list(islice(batches(sizes, 4, seed=3), 9)) == list(islice(batches(sizes, 4, seed=3), 9))
    assert list(islice(batches(sizes, 4, seed=3), 9)) != list(islice(batches(sizes, 4, seed=4), 9))


def test_shards_are_consecutive_and_equal() -> None:
    assert shards([5, 6, 7, 8], 2) == [[5, 6], [7, 8]]
    with pytest.raises(ValueError, match="batch of 3"):
        shards([1, 2, 3], 2)


def test_no_two_shards_share_a_seed() -> None:
    seeds = {shard_seed(seed, iteration, shard) for seed in range(3) for iteration in range(200) for shard in range(8)}
    assert len(seeds) == 3 * 200 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
