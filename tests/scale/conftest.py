"""A Ray cluster for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clusters import Scaled, cluster


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    pytest.importorskip("ray")
    with cluster(tmp_path_factory.mktemp("ran")) as started:
        yield started
