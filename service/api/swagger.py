"""The OpenAPI document, and Swagger UI to read and try it, which is served from here too."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response

from service.web.package_files import PackageFiles

FILES_PATH = "/docs/files"
_DOCUMENT_PATH = "/openapi.json"

router = APIRouter(redirect_slashes=False)


# FastAPI's own would be a route without a name in the metrics.
@router.head(_DOCUMENT_PATH, include_in_schema=False)
@router.get(_DOCUMENT_PATH, include_in_schema=False)
async def document(request: Request) -> Response:
    state = request.app.state
    if not hasattr(state, "openapi_document"):  # once, as encoding takes part of a millisecond
        state.openapi_document = bytes(JSONResponse(request.app.openapi()).body)
    return Response(state.openapi_document, media_type="application/json")


@router.head("/docs", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
async def page() -> Response:
    """Swagger UI, with leave to run its script and to ask this server, and for nothing else."""
    files = FILES_PATH.removeprefix("/")  # relative, as a gateway may put something before
    shown: HTMLResponse = get_swagger_ui_html(
        openapi_url=_DOCUMENT_PATH.removeprefix("/"),
        title="faster-rcnn-service",
        swagger_js_url=f"{files}/swagger-ui-bundle.js",
        swagger_css_url=f"{files}/swagger-ui.css",
        swagger_favicon_url="page/icon.svg",
    )
    inline = re.search(rb"<script>(.*?)</script>", bytes(shown.body), re.DOTALL)
    assert inline is not None, "FastAPI's page begins otherwise: this is a bug"
    digest = base64.b64encode(hashlib.sha256(inline[1]).digest()).decode()
    shown.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return shown


def docs_files() -> PackageFiles:
    """Swagger UI's script and styles."""
    return PackageFiles(packages=[("fastapi_offline", "static")])
