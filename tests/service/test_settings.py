from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_PORT", "9001")
    monkeypatch.setenv("FRCNN_MAX_BATCH_SIZE", "4")
    monkeypatch.setenv("FRCNN_WEIGHTS", "from-env")
    settings = Settings(weights="given")
    assert (settings.port, settings.max_batch_size, settings.weights) == (9001, 4, "given")


def test_auto_is_a_batch_size() -> None:
    assert Settings(max_batch_size="auto").max_batch_size == "auto"


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"max_batch_size": 0}, {"max_batch_size": "many"}, {"precision": "fp64"}, {"colour": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
