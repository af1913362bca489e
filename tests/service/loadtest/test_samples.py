from __future__ import annotations

import pytest

from service.loadtest.samples import Samples
from tests.support.measurements import measured


def test_parts_of_several_processes_are_one() -> None:
    one, other = measured([(2, 0.1, "")]).samples, measured([(3, 0.2, "503")]).samples
    both = Samples.merged([one, other])
    assert both.latency == pytest.approx([0.1, 0.2])
    assert both.failures == ["", "503"]
