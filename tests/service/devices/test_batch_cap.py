from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.devices.batch_cap import BatchCap


def test_it_halves_and_rises_by_one_after_twenty_full_batches() -> None:
    cap = BatchCap(8)
    cap.fall(8)
    assert (cap.now, cap.lowered) == (4, True)
    for _ in range(100):
        cap.fitted(3)  # says nothing of a fifth
    for _ in range(19):
        cap.fitted(4)
    assert cap.now == 4
    cap.fitted(4)
    assert cap.now == 5


def test_what_did_not_fit_starts_the_count_again() -> None:
    cap = BatchCap(2)
    cap.fall(2)
    for _ in range(19):
        cap.fitted(1)
    cap.fall(1)
    for _ in range(19):
        cap.fitted(1)
    assert cap.now == 1
    cap.fitted(1)
    assert (cap.now, cap.lowered) == (2, False)


@given(most=st.integers(1, 64), fits=st.integers(1, 64))
def test_it_finds_what_fits_and_never_leaves_its_bounds(most: int, fits: int) -> None:
    cap = BatchCap(most)
    for _ in range(3000):
        size = cap.now
        if size > fits:
            cap.fall(size)
        else:
            cap.fitted(size)
        assert 1 <= cap.now <= most
    assert cap.now <= fits + 1
    assert cap.now >= min(most, -(-fits // 2))
