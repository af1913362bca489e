from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model.architectures import ARCHITECTURES
from service.settings import MODELS, Settings, misspelt_variables


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_PORT", "9001")
    monkeypatch.setenv("FRCNN_MAX_BATCH_SIZE", "4")
    monkeypatch.setenv("FRCNN_WEIGHTS", "from-env")
    settings = Settings(weights="given")
    assert (settings.port, settings.max_batch_size, settings.weights) == (9001, 4, "given")


def test_auto_is_a_batch_size() -> None:
    assert Settings(max_batch_size="auto").max_batch_size == "auto"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"max_batch_size": 0},
        {"max_batch_size": "many"},
        {"precision": "fp64"},
        {"model": "retinanet_resnet50_fpn"},
        {"colour": 1},
        {"cors_origins": "app.example"},
        {"cors_origins": "https://app.example/"},
        {"cors_origins": "https://*.example"},
    ],
)
def test_wrong_settings_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_CORS_ORIGINS", "https://app.example, http://localhost:3000")
    assert Settings().cors_origins == ("https://app.example", "http://localhost:3000")
    assert Settings(cors_origins="*").cors_origins == ("*",)
    assert Settings(cors_origins="").cors_origins == ()


def test_names_of_classes_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().class_names == ()
    monkeypatch.setenv("FRCNN_CLASS_NAMES", "traffic light, dog")
    assert Settings().class_names == ("traffic light", "dog")


def test_a_collector_is_named_as_everywhere_or_by_our_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://everywhere:4318")
    assert Settings().otlp_endpoint == "http://everywhere:4318"
    monkeypatch.setenv("FRCNN_OTLP_ENDPOINT", "http://own:4318")
    assert Settings().otlp_endpoint == "http://own:4318"
    assert Settings(otlp_endpoint="http://given:4318").otlp_endpoint == "http://given:4318"


def test_misspelt_variables_are_found() -> None:
    given = ["FRCNN_API_KEY", "FRCNN_API_KEYS", "frcnn_port", "FRCNN_OTLP_ENDPOINT", "HOME", "OTHER_FRCNN_X"]
    assert misspelt_variables(given) == ["FRCNN_API_KEY"]


def test_every_architecture_can_be_chosen_and_the_first_is_the_default() -> None:
    assert tuple(ARCHITECTURES) == MODELS
