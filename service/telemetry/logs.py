"""How the log is written: as lines for people or as JSON for machines, each with the id of its request.

Nothing of an image and no key ever gets there: our own messages hold neither, and libraries that would write down what
they parse are kept quiet.
"""

from __future__ import annotations

import logging
import sys
from asyncio import CancelledError
from contextvars import ContextVar

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

from service.settings import LogFormat, Settings
from service.telemetry.background_log import BackgroundHandler

access_logger = logging.getLogger("service.access")
request_id_of_this_task: ContextVar[str | None] = ContextVar("request_id", default=None)

_OURS = ("service", "model", "uvicorn")


class RequestFields(logging.Filter):
    """Put the request's id, and that of its trace, on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = request_id_of_this_task.get()
        span = trace.get_current_span().get_span_context()
        record._request = ""  # for the text alone: the JSON formatter leaves out what begins so
        if request_id is not None:
            record.request_id = request_id
            record._request = f" [{request_id}]"
        if span.is_valid:
            record.trace_id = trace.format_trace_id(span.trace_id)
        return True


class UvicornRecords(logging.Filter):
    """Log uvicorn's news as `uvicorn`, not as `uvicorn.error`, and without the coloured copy of the message.

    Declined upgrades, and requests that were cancelled when the process ended, are left out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            record.name = "uvicorn"
        vars(record).pop("color_message", None)
        text = str(record.msg)
        cancelled = record.exc_info and record.exc_info[0] is CancelledError
        return not (cancelled or "upgrade request" in text or "WebSocket library" in text)


def configure(settings: Settings, *, in_background: bool = False) -> None:
    """Send the whole process's log to standard error, warnings and uvicorn's loggers included.

    Args:
        settings: level and format.
        in_background: have a thread write it.
    """
    level = settings.log_level.upper()
    logging.captureWarnings(True)
    handler = BackgroundHandler(sys.stderr) if in_background else logging.StreamHandler()
    handler.addFilter(RequestFields())
    handler.setFormatter(_formatter(settings.log_format))
    # Not `logging.config.dictConfig`, which closes every handler of the process, with the streams of some libraries'.
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Whatever is not ours stays quiet: Pillow would log an image's EXIF data when asked for details.
    root.setLevel("ERROR" if level == "ERROR" else "WARNING")
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    logging.getLogger("uvicorn.error").addFilter(UvicornRecords())
    logging.getLogger("python_multipart").setLevel("ERROR")  # its warnings quote bytes of the body


def _formatter(chosen: LogFormat) -> logging.Formatter:
    if chosen == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(name)s%(_request)s: %(message)s")
    return JsonFormatter(
        ["levelname", "name", "message"], timestamp=True, rename_fields={"levelname": "level", "name": "logger"}
    )
