from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.web.auth import ApiKeys, KeysError, load_keys
from service.web.middleware import RequestContext
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live, serving

KEYS = "first-key-of-the-test,second-key-of-the-test"
OPEN = ("/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
PAGE = ("/", "/page/main.js", "/page/style.css")
GUARDED = (
    "/labels",
    "/metrics",
    "/docs",
    "/docs/files/swagger-ui.css",
    "/openapi.json",
    "/nowhere",
    "/healthz/",
    "/livez/../labels",
    "/page",
)


@pytest.mark.anyio
@pytest.mark.parametrize("path", GUARDED)
async def test_without_a_key_nothing_is_told(path: str) -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        response = await client.get(path)
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"] == 'Bearer realm="faster-rcnn-service"'
        assert response.json()["type"].endswith(":unauthorized")
        assert response.json()["request_id"] == response.headers["x-request-id"]
        rejected = await client.options(path)
        assert rejected.status_code == 401


@pytest.mark.anyio
async def test_probes_and_the_page_need_no_key() -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        for path in OPEN + PAGE:
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == 200


def test_the_page_is_no_way_round_the_key() -> None:
    with live(FakeDetector(), api_keys=KEYS) as url:
        address = urlsplit(url)
        for path in ("/page/../labels", "/page/%2e%2e/labels", "/page/..%2flabels", "/page//labels"):
            with socket.create_connection((address.hostname, address.port)) as connection:  # httpx would mend the path
                connection.settimeout(20)
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert connection.recv(4096).startswith(b"HTTP/1.1 404 "), path


@pytest.mark.anyio
async def test_the_protocol_s_rejections_have_its_form() -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        response = await client.get("/v2")
        assert response.status_code == 401
        assert list(response.json()) == ["error"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key-of-the-test"},
        {"Authorization": "bearer  second-key-of-the-test "},
        {"X-API-Key": "second-key-of-the-test"},
        {"X-API-Key": "first-key-of-the-test", "Authorization": "Basic Z2F0ZTp3YXk="},
        {"X-API-Key": "wrong", "Authorization": "Bearer first-key-of-the-test"},
    ],
)
async def test_any_key_opens_in_either_header(headers: dict[str, str]) -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        assert (await client.post("/detect", content=red_png(7), headers=headers)).status_code == 200
        assert (await client.get("/nowhere", headers=headers)).status_code == 404


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer first-key-of-the-tes"},
        {"Authorization": "Bearer first-key-of-the-test2"},
        {"Authorization": "Bearer FIRST-KEY-OF-THE-TEST"},
        {"Authorization": f"Bearer {KEYS}"},
        {"Authorization": "first-key-of-the-test"},
        {"Authorization": "Basic first-key-of-the-test"},
        {"X-API-Key": ""},
        {"X-API-Key": "Bearer first-key-of-the-test"},
        {"X-API-Key": "schlüssel".encode("latin-1")},
        {"Cookie": "X-API-Key=first-key-of-the-test"},
    ],
)
async def test_a_wrong_key_opens_nothing(headers: dict[Any, Any]) -> None:
    detector = FakeDetector()
    async with serving(detector, api_keys=KEYS) as client:
        response = await client.post("/detect?api_key=first-key-of-the-test", content=red_png(7), headers=headers)
        assert response.status_code == 401
        assert "first-key" not in response.text
    assert not detector.batches


@pytest.mark.anyio
async def test_a_wrong_key_is_told_from_none() -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        response = await client.get("/labels", headers={"X-API-Key": "wrong"})
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        text = (await client.get("/metrics", headers={"X-API-Key": "first-key-of-the-test"})).text
    assert 'frcnn_problems_total{code="unauthorized"} 1.0' in text
    assert 'frcnn_requests_total{route="none",status="401"} 1.0' in text


@pytest.mark.anyio
async def test_a_key_may_be_more_than_ascii() -> None:
    async with serving(FakeDetector(), api_keys="schlüssel-für-alle") as client:
        for value, status in (("schlüssel-für-alle".encode(), 200), ("schlüssel-für-alle".encode("latin-1"), 401)):
            assert (await client.get("/labels", headers={b"X-API-Key": value})).status_code == status


def test_a_request_without_a_key_is_rejected_before_its_body_is_sent() -> None:
    with live(FakeDetector(), api_keys=KEYS) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.settimeout(20)
            connection.sendall(
                b"POST /detect HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 30000000\r\n\r\n"
            )
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ("one-key\n", {"one-key"}),
        ("\ufeffone-key\r\n\r\n  another-key  \r\n", {"one-key", "another-key"}),
        ("with,comma", {"with,comma"}),
    ],
)
def test_keys_come_from_a_file(content: str, keys: set[str], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8", newline="")
    assert load_keys(Settings(api_keys_file=path)) == keys
    assert load_keys(Settings(api_keys="third, fourth", api_keys_file=str(path))) == keys | {"third", "fourth"}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"two words\n", b"\xff\xfe\x00", None])
def test_a_file_that_gives_no_keys_stops_the_service(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeysError, match=str(path)) as rejected:
        create_app(Settings(api_keys_file=path))
    assert "two words" not in str(rejected.value)


def test_a_file_of_keys_that_may_not_be_read_names_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", reject)
    with pytest.raises(KeysError, match=r"/k cannot be read: Permission denied; user \d+ must be able to"):
        load_keys(Settings(api_keys_file=Path("/k")))


def test_keys_that_are_none_stop_the_service_and_unset_ones_do_not() -> None:
    with pytest.raises(KeysError):
        load_keys(Settings(api_keys=" , "))
    assert load_keys(Settings(api_keys="")) == load_keys(Settings()) == frozenset()


def test_keys_do_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_API_KEYS", KEYS)
    settings = Settings()
    assert load_keys(settings) == set(KEYS.split(","))
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "first-key" not in shown


@pytest.mark.anyio
async def test_every_key_is_compared_with_all_and_by_digests() -> None:
    compared: list[tuple[bytes, bytes]] = []

    def equal(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    async def opened(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("open")(scope, receive, send)

    app = RequestContext(ApiKeys(opened, keys=["a1", "b2", "c3", "d4"], equal=equal), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for key, status in (("a1", 200), ("d4", 200), ("z9", 401), ("much-longer-than-any-of-them", 401)):
            compared.clear()
            assert (await client.get("/labels", headers={"X-API-Key": key})).status_code == status
            assert len(compared) == 4
            assert {len(value) for pair in compared for value in pair} == {32}


def test_many_guesses_in_one_request_count_as_one() -> None:
    with live(FakeDetector(), api_keys=KEYS) as url:
        guesses = [("X-API-Key", f"guess-{n}") for n in range(50)] + [("X-API-Key", "first-key-of-the-test")]
        assert httpx.get(f"{url}/labels", headers=guesses).status_code == 401
