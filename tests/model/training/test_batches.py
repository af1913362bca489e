from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from model.training.batches import aspect_bin, batches, shard_seed, shards


def test_every_image_comes_once_in_an_epoch() -> None:
    seen = Counter(index for batch in islice(batches([(480, 640)] * 12, 4, seed=0), 6) for index in batch)
    assert set(seen.values()) == {2}


def test_a_batch_is_of_one_aspect_ratio_and_nothing_is_lost() -> None:
    sizes = [(480, 640)] * 7 + [(640, 480)] * 3
    drawn = list(islice(batches(sizes, 4, seed=1), 50))
    assert all(len({aspect_bin(sizes[index]) for index in batch}) == 1 for batch in drawn)
    seen = Counter(index for batch in drawn for index in batch)
    assert min(seen[index] for index in range(10)) >= 18  # 200 draws of 10 images, up to what waits for a full batch


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
