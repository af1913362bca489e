"""Routes for operators. They are there only where they are enabled."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api import openapi, schemas
from service.api.job import service_of
from service.errors import BadParameterError

router = APIRouter(prefix="/-", tags=["administration"], redirect_slashes=False)

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@router.post(
    "/reload",
    response_model=schemas.Reloaded,
    responses=openapi.problems(409, 422, 503),
    openapi_extra=openapi.RELOAD_REQUEST,
)
async def reload(request: Request) -> Response:
    """Read the weights again and serve with them, without rejecting a request. Answers when that is done.

    The path exists only with `--enable-reload`. Where there is not enough memory for two models, `pause=true` lets the
    old one go first: requests get a 503 until the new one is ready, and the service ends if it cannot be loaded.
    """
    pause = _pause(request)
    started = time.monotonic()
    info = await service_of(request).reload(pause=pause)
    body = {"model": schemas.model_json(info), "seconds": round(time.monotonic() - started, 3)}
    return JSONResponse(body)


def _pause(request: Request) -> bool:
    """The parameter `pause`.

    Raises:
        BadParameterError: it is no boolean, or there is another parameter.
    """
    for name, value in request.query_params.multi_items():
        if name != "pause":
            raise BadParameterError(f"{name}: there is no such parameter; there is pause")
        if value.lower() not in _BOOLEANS:
            raise BadParameterError(f"pause must be true or false, not {value!r}")
    return _BOOLEANS[request.query_params.get("pause", "false").lower()]
