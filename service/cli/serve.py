"""`frcnn serve`: the service until SIGTERM or Ctrl-C."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import socket
import tempfile
from typing import Any, Literal, get_origin

from pydantic import SecretStr, ValidationError

from model.weights.names import argument_error
from service.cli.errors import USAGE, fail, fail_if, say
from service.cli.options import of_setting, require_folder
from service.settings import Settings, misspelt_variables
from service.telemetry import logs

logger = logging.getLogger(__name__)

# What stands for a setting's value in the help, where its type says too little.
_METAVARS = {
    "host": "ADDRESS", "weights": "W", "model": "MODEL", "device": "DEVICE", "calibration_images": "DIR",
    "max_batch_size": "N|auto", "api_keys_file": "FILE", "cors_origins": "ORIGINS", "class_names": "L,L",
    "otlp_endpoint": "URL", "decode_threads": "N",
}  # fmt: skip


def serve(**flags: Any) -> None:
    """Serve the detector over HTTP until SIGTERM or Ctrl-C.

    Every option can also be set in the environment as FRCNN_<NAME>; the option wins.

    Example: frcnn serve --weights out/best.safetensors --port 8001
    """
    settings = settings_from({name: value for name, value in flags.items() if value is not None})
    _require_temporary_folder()
    logs.configure(settings, in_background=True)
    for name in misspelt_variables():
        logger.warning("%s is set, and is no setting: is it misspelt?", name)
    require_folder(settings.calibration_images)
    fail_if(argument_error(weights=settings.weights))  # before torch is imported, which takes seconds

    from service.server import serve as serve_until_the_end
    from service.telemetry.tracing import TracingError
    from service.web.auth import KeysError

    try:
        fatal_error = serve_until_the_end(settings, _listen(settings.host, settings.port))
    except (KeysError, TracingError) as error:
        fail(str(error), code=USAGE)
    fail(fatal_error)


def _listen(host: str, port: int) -> socket.socket:
    """Taken before anything is loaded, so that a port that is not free ends the process at once."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        another = ". Choose another: --port 8001" if error.errno == errno.EADDRINUSE else ""
        fail(f"cannot listen on {host}:{port}: {reason}{another}")
    shown = f"[{host}]" if ":" in host else host
    logger.info("listening on http://%s:%d (Ctrl-C ends it)", shown, listener.getsockname()[1])
    return listener


def settings_from(overrides: dict[str, Any]) -> Settings:
    """The settings of the environment, overridden; a wrong one ends the command."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        *first, last = [
            f"--{name.replace('_', '-')} (FRCNN_{name.upper()}): "
            f"{problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"
            for problem in error.errors()
            for name in [str(problem["loc"][0])]
        ]
        for message in first:
            say(f"frcnn: {message}")
        fail(last, code=USAGE)


def _require_temporary_folder() -> None:
    """Importing torch would end in a traceback."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        fail("there is no folder for temporary files: let /tmp be written; docker run needs --tmpfs /tmp")


def _settings_as_options() -> inspect.Signature:
    """One option per setting. Secrets have none: all users of a machine see the arguments of its processes."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if field.annotation == SecretStr | None:
            continue
        is_plain = get_origin(field.annotation) is Literal or field.annotation in (int, float, bool)
        parameters.append(
            of_setting(
                name,
                field.annotation if is_plain else str,
                field.description or "",
                default=field.default,
                metavar=_METAVARS.get(name),
            )
        )
    return inspect.Signature(parameters)


serve.__signature__ = _settings_as_options()  # type: ignore[attr-defined]
