from __future__ import annotations

import pytest

from model.data.samples import DataError
from model.data.sources import open_data


def test_an_unknown_split_says_which_there_are() -> None:
    with pytest.raises(DataError, match="train, val"):
        open_data("synthetic", "dev")


@pytest.mark.parametrize("make", [lambda p: p / "nothing", lambda p: p])
def test_no_data_say_what_is_wanted(tmp_path: object, make: object) -> None:
    assert callable(make)
    with pytest.raises(DataError, match=r"Pascal VOC folder"):
        open_data(str(make(tmp_path)), "train")
