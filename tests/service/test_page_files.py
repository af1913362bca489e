"""The page's files as HTTP gives them; what they do is tested in a browser, in page/."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.page.routes import STATIC

pytestmark = pytest.mark.anyio


async def test_the_page_may_load_and_talk_to_nothing_but_its_own_service(fake: Any, serving: Any) -> None:
    async with serving(fake()) as client:
        response = await client.get("/")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "camera=(self)" in response.headers["permissions-policy"]
        assert (await client.head("/")).status_code == 200


async def test_every_file_that_the_page_names_is_there_and_of_its_type(fake: Any, serving: Any) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
    html = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="(page/[^"]+)"', html)) | {"page/sample.jpg"}
    for script in STATIC.glob("*.js"):
        named |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert {path.name for path in STATIC.iterdir()} == {name.removeprefix("page/") for name in named} | {"index.html"}
    async with serving(fake()) as client:
        for name in named:
            response = await client.get(f"/{name}")
            assert response.status_code == 200, name
            assert response.headers["content-type"].split(";")[0] == types["." + name.rsplit(".", 1)[1]]
            assert response.headers["cache-control"] == "no-cache"
            again = await client.get(f"/{name}", headers={"If-None-Match": response.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize("path", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "..%2froutes.py"])
async def test_no_other_file_is_served(path: str, fake: Any, serving: Any) -> None:
    async with serving(fake()) as client:
        response = await client.get(f"/page/{path}")
        assert response.status_code == 404
        assert response.json()["request_id"]


def test_the_page_has_no_external_address_and_nothing_inline() -> None:
    for path in STATIC.iterdir():
        if path.suffix in {".html", ".css", ".js"}:
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), path.name
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", html)
    for script in STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text())
