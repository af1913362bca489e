"""The page for people: its files come from the package, and its policy forbids everything else."""

from __future__ import annotations

import html
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from service.web.package_files import CACHING

STATIC = Path(__file__).parent / "static"
_NOT_FOUND = Template((Path(__file__).parent / "not_found.html").read_text(encoding="utf-8"))

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    **CACHING,
}

router = APIRouter(redirect_slashes=False)


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


def is_for_a_person(request: Request) -> bool:
    """Whether a browser shows the answer as a page: it names HTML, where programs take anything."""
    return request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", "")


def not_found_page(request: Request, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    """The page in place of a problem document, for a path that does not exist (404) or takes other methods (405)."""
    path = request.url.path
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        title, detail = "This address is for programs", f"{path} takes {(headers or {}).get('Allow', 'other methods')}."
    else:
        title, detail = "There is no such page", f"{path} is not an address of this service."
    # Relative, because a gateway may put a prefix before the path.
    root = "../" * path.removeprefix(request.base_url.path).count("/") or "./"
    body = _NOT_FOUND.substitute(title=title, detail=html.escape(detail), root=root)
    return HTMLResponse(body, status, headers={**(headers or {}), **HEADERS, "Vary": "Accept"})
