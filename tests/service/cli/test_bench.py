from __future__ import annotations

import pytest

from tests.support.commands import invoke


def test_a_device_that_is_not_there_ends_with_a_message() -> None:
    result = invoke("bench", "service", "--device", "cuda:77")
    assert result.exit_code == 1
    assert "there is no device" in result.output


@pytest.mark.parametrize("wrong", [("--size", "480"), ("--size", "axb"), ("--batch-size", "0"), ("--rounds", "0")])
def test_wrong_usage_is_told(wrong: tuple[str, str]) -> None:
    result = invoke("bench", "model", *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.output
