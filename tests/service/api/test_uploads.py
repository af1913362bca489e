from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import httpx
import pytest

from service.api import uploads
from tests.support.fakes import FakeDetector
from tests.support.servers import live


def test_nothing_is_kept_of_a_body_that_was_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(str):
        """A string that can be watched."""

    seen: list[weakref.ref[Text]] = []

    def watched(*_: Any, **__: Any) -> dict[str, Any]:
        text = Text("%%%")
        seen.append(weakref.ref(text))
        return {"image": text}

    monkeypatch.setattr(uploads, "read_object", watched)
    with live(FakeDetector()) as url:
        gc.disable()
        try:
            assert httpx.post(f"{url}/detect", json={}).status_code == 400
            httpx.get(f"{url}/livez")
            time.sleep(0.1)
            assert [text() for text in seen] == [None]
        finally:
            gc.enable()
