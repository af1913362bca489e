"""Files that come with a package, as a browser may keep them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

# The browser asks each time and gets a 304: an upgraded page never runs an old script.
CACHING = {"Cache-Control": "no-cache"}


class PackageFiles(StaticFiles):
    """Starlette's, with `CACHING`."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(CACHING)
        return response
