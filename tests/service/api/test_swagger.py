from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.support.fakes import FakeDetector
from tests.support.servers import serving

pytestmark = pytest.mark.anyio


async def test_the_documents_page_may_run_its_own_script_and_no_other() -> None:
    async with serving(FakeDetector()) as client:
        page = await client.get("/docs")
        script = re.search(rb"<script>(.*?)</script>", page.content, re.DOTALL)
        assert script is not None
        digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode()
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert f"'sha256-{digest}'" in policy["script-src"]
        assert "unsafe" not in policy["script-src"]
        asked = re.search(r"url: '([^']+)'", page.text)
        assert asked is not None
        assert (await client.get(str(page.url.join(asked[1])))).json()["openapi"]
        assert (await client.head(str(page.url.join(asked[1])))).status_code == 200
        assert (await client.get("/redoc")).status_code == 404


async def test_the_documents_page_is_served_from_here() -> None:
    async with serving(FakeDetector()) as client:
        page = await client.get("/docs")
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(named) == 3
        for name in named:
            answer = await client.get(str(page.url.join(name)))
            assert (answer.url.host, answer.status_code) == ("test", 200)
        assert "http" not in page.headers["content-security-policy"]
        counted = (await client.get("/metrics")).text
    assert 'frcnn_requests_total{route="/docs",status="200"} 1.0' in counted
    assert 'frcnn_requests_total{route="/docs/files",status="200"} 2.0' in counted


async def test_the_document_is_counted_under_its_name() -> None:
    async with serving(FakeDetector()) as client:
        assert (await client.get("/openapi.json")).json()["openapi"].startswith("3.1")
        assert 'frcnn_requests_total{route="/openapi.json",status="200"} 1.0' in (await client.get("/metrics")).text
