"""What the transport does beneath a plan: TLS, and the words for connections that fail."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.loadtest.transport import no_connection
from tests.support.timed_service import measure


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
    subprocess.run(
        [openssl, "req", "-x509", *new_key, *subject, "-out", str(certificate)], check=True, capture_output=True
    )
    return certificate, key


@pytest.mark.parametrize("trusted", [True, False])
def test_tls(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificate)
    plan: dict[str, Any] = {"concurrency": 2, "duration_s": 0.5, "images": (b"x" * 100_000,)}
    samples, service = measure(lambda n, now: 0.02, tls=server, **plan)
    if trusted:
        assert samples.succeeded.all()
        assert len(service.received) == len(samples) >= 4
        assert service.connections == 2
    else:
        assert set(samples.failures) == {"no connection: self-signed certificate"}
        assert service.received == []


def test_the_first_cause_is_told() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    outer = OSError("All connection attempts failed")
    outer.__cause__ = ExceptionGroup("of each address", [refused, OSError("other")])
    assert no_connection(refused) == no_connection(outer) == "no connection: Connection refused"
    assert no_connection(ValueError("odd: very")) == "no connection: odd"
