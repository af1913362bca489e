"""The page's files as HTTP gives them; what they do is tested in a browser, in page/."""

from __future__ import annotations

import re

import pytest

from service.page.routes import STATIC
from tests.support.fakes import FakeDetector
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


async def test_the_page_may_load_and_talk_to_nothing_but_its_own_service() -> None:
    async with serving(FakeDetector()) as client:
        response = await client.get("/")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "camera=(self)" in response.headers["permissions-policy"]
        assert (await client.head("/")).status_code == 200


async def test_every_file_that_the_page_names_is_there_and_of_its_type() -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
    html = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="(page/[^"]+)"', html)) | {"page/sample.jpg"}
    for script in STATIC.glob("*.js"):
        named |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert {path.name for path in STATIC.iterdir()} == {name.removeprefix("page/") for name in named} | {"index.html"}
    async with serving(FakeDetector()) as client:
        for name in named:
            response = await client.get(f"/{name}")
            assert response.status_code == 200, name
            assert response.headers["content-type"].split(";")[0] == types["." + name.rsplit(".", 1)[1]]
            assert response.headers["cache-control"] == "no-cache"
            again = await client.get(f"/{name}", headers={"If-None-Match": response.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize("path", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "..%2froutes.py"])
async def test_no_other_file_is_served(path: str) -> None:
    async with serving(FakeDetector()) as client:
        response = await client.get(f"/page/{path}")
        assert response.status_code == 404
        assert response.json()["request_id"]


@pytest.mark.parametrize(
    ("path", "root"), [("/nowhere", "./"), ("/a/b/c", "../../"), ("/page/nothing.js", "../"), ("/<b>", "./")]
)
async def test_an_unknown_path_gives_a_person_a_page(path: str, root: str) -> None:
    async with serving(FakeDetector()) as client:
        response = await client.get(path, headers={"Accept": BROWSER})
        assert response.status_code == 404
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["vary"] == "Accept"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "There is no such page" in response.text
        assert "<b>" not in response.text
        assert f'href="{root}page/style.css"' in response.text
        for link in set(re.findall(r'(?:src|href)="([^"]+)"', response.text)):
            assert (await client.get(response.url.join(link))).status_code == 200, link
        assert 'code="no-such-path"} 1.0' in (await client.get("/metrics")).text


async def test_a_path_for_programs_says_so_to_a_person() -> None:
    async with serving(FakeDetector()) as client:
        response = await client.get("/detect", headers={"Accept": BROWSER})
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert "/detect takes POST." in response.text


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        ("GET", "/nowhere", "*/*"),
        ("GET", "/nowhere", "application/json"),
        ("GET", "/nowhere", None),
        ("POST", "/nowhere", BROWSER),
        ("GET", "/v2/nowhere", BROWSER),
    ],
)
async def test_an_unknown_path_gives_a_program_a_document(method: str, path: str, accept: str | None) -> None:
    async with serving(FakeDetector()) as client:
        client.headers.pop("accept")
        response = await client.request(method, path, headers={"Accept": accept} if accept else {})
        assert response.status_code == 404
        assert response.headers["content-type"] in {"application/problem+json", "application/json"}


def test_the_page_has_no_external_address_and_nothing_inline() -> None:
    for path in STATIC.iterdir():
        if path.suffix in {".html", ".css", ".js"}:
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), path.name
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", html)
    for script in STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text())
