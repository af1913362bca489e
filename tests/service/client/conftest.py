"""Each test of a client, with both clients."""

from __future__ import annotations

import pytest

from tests.support.clients import Async, Sync


@pytest.fixture(params=[Sync, Async])
def calling(request: pytest.FixtureRequest) -> type[Sync]:
    client: type[Sync] = request.param
    return client
