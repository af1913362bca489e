from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from service.web.package_files import PackageFiles

pytestmark = pytest.mark.anyio


async def test_a_browser_asks_each_time_and_gets_a_304_while_the_file_is_the_same() -> None:
    files = PackageFiles(packages=[("service.page", "static")])
    app = Starlette(routes=[Mount("/files", files)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        first = await client.get("/files/main.js")
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        again = await client.get("/files/main.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"], again.content) == (304, "no-cache", b"")
        for path in ("/files/../routes.py", "/files/%2e%2e/routes.py", "/files/none.js"):
            assert (await client.get(path)).status_code == 404
