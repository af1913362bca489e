"""Everything that can be set, and the only place that reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.wire import LONGEST_TIMEOUT_MS, TIMEOUT_HEADER

MIB = 1 << 20
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"]
Backend = Literal["auto", "torch", "openvino"]
ModelName = Literal["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
LogFormat = Literal["text", "json"]
_PREFIX = "FRCNN_"
_ORIGIN = re.compile(r"https?://[^/\s*?#@]+")


class Settings(BaseSettings):
    """The service's settings: `FRCNN_<NAME>` in the environment, or `frcnn serve --<name>`, which wins."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    weights: str = Field(
        "auto",
        min_length=1,
        description="COCO_V1, bundled, auto (COCO_V1 where it can be had, else bundled), random, or a file of weights.",
    )
    model: ModelName | None = Field(
        None,
        description="fasterrcnn_resnet50_fpn (also by default) or fasterrcnn_resnet50_fpn_v2; a file says its own.",
    )
    class_names: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the classes after the background, in order; by default the weights' own."
    )
    device: str = Field("auto", description="auto, cpu, cuda, or several: cuda:0,cuda:1.")
    precision: Precision = Field(
        "auto", description="Arithmetic of the network; auto: the fastest of fp32 and the 16-bit ones; boxes are fp32."
    )
    backend: Backend = Field(
        "auto", description="What computes the network on a CPU; auto: the faster, where OpenVINO is installed."
    )
    calibration_images: Path | None = Field(
        None, description="Folder of typical pictures that int8 is fitted to; by default generated blood smears."
    )
    calibrate_first: bool = Field(
        False, description="Calibrate int8 before anything is answered; by default another precision answers meanwhile."
    )
    max_batch_size: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        "auto", description="Most images in one batch; auto: measured, more than one where they gain enough."
    )
    max_queue_delay_ms: float = Field(
        0.0, ge=0, le=10_000, description="How long an idle device waits for a batch to fill; 0 starts at once."
    )
    queue_capacity: int = Field(256, ge=1, description="Most images accepted and not yet answered.")
    queue_capacity_pixels: int = Field(
        1 << 29,
        ge=1,
        description="Most pixels of those images, as sent or as padded for the device; each takes 3 bytes as it waits.",
    )
    queue_capacity_bytes: int = Field(1 << 30, ge=1, description="Most bytes of the bodies that they came in.")
    memory_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes of memory of all requests, with pictures, decoders' copies and drawn answers; by "
        "default 768 MiB and 128 MiB for each decoding thread.",
    )
    fair_share: Literal["auto", "address", "off"] = Field(
        "auto",
        description="Whose requests share turns in the queue and memory. auto: those of an API key, or else of an "
        "address; off: all are one caller's, as behind a proxy without keys.",
    )
    priority_head_start_s: float = Field(
        10.0, ge=0, le=3600, description="Seconds of waiting that each step of X-Priority is worth."
    )
    request_timeout_ms: int = Field(
        60_000, ge=1, le=LONGEST_TIMEOUT_MS, description=f"Time for a request that does not set {TIMEOUT_HEADER}."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="How long a request's body may take to arrive.")
    max_body_bytes: int = Field(32 * MIB, ge=1, description="Largest body of /detect, and largest file of a batch.")
    max_batch_body_bytes: int = Field(256 * MIB, ge=1, description="Largest body of /detect/batch.")
    max_batch_files: int = Field(64, ge=1, description="Most images in one /detect/batch request.")
    max_tiles: int = Field(
        128, ge=1, description="Most pictures that one may become by `tile`: its tiles, and itself as a whole."
    )
    max_image_pixels: int = Field(8192 * 8192, ge=1, description="Largest width times height of an image.")
    hang_timeout_s: float = Field(
        120.0, gt=0, description="A device that works longer than this on one batch counts as failing."
    )
    canary_interval_s: float = Field(
        60.0,
        ge=0,
        description="An idle device that does not answer, or wrongly, is noticed within this, a busy one within five "
        "times as long; 0: one that does not answer when it is next used.",
    )
    on_failure: Literal["restart", "exit"] = Field(
        "restart", description="When no device answers: restart them in this process, or exit for its supervisor."
    )
    enable_reload: bool = Field(
        False, description="Let POST /-/reload read the weights again and serve with them, as SIGHUP does."
    )
    drain_delay_s: float = Field(
        0.0, ge=0, description="After SIGTERM, how long requests are still taken while /readyz says draining."
    )
    shutdown_timeout_s: int = Field(
        65, ge=0, description="How long a stopping server waits for the requests it accepted."
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="Threads that decode images; by default one per core. As many again decode large ones, which take "
        "over a quarter of a second, and yield to all other threads.",
    )
    api_keys: SecretStr | None = Field(
        None, description="Keys that callers must show one of, separated by commas; in the environment only."
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one a line, besides those of FRCNN_API_KEYS. Without any, anybody may call.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web pages that may call from a browser: https://app.example,https://...; or *."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log shown.")
    log_format: LogFormat = Field("text", description="Lines for people, or one JSON object a line for machines.")
    access_log: bool = Field(True, description="Log a line for each request.")
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("FRCNN_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Where to send OpenTelemetry traces: http://localhost:4318. Also OTEL_EXPORTER_OTLP_ENDPOINT.",
    )

    @field_validator("cors_origins", "class_names", mode="before")
    @classmethod
    def _words_from_text(cls, value: object) -> object:
        return words(value) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins_without_path(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # A browser sends scheme and host alone: anything more would never match, silently.
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} must be * or like https://app.example or http://localhost:3000")
        return origins

    @field_validator("max_batch_size", mode="before")
    @classmethod
    def _number_from_text(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value


def words(text: str) -> tuple[str, ...]:
    """The words of a list that commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def misspelt_variables(environment: Iterable[str] = os.environ) -> list[str]:
    """Variables that look like settings and are none: a misspelt FRCNN_API_KEYS must not leave the door open unseen."""
    known = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(_PREFIX) and name.upper() not in known)
