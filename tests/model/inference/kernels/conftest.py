"""Where there is no GPU, Triton's interpreter runs the kernels, slowly and with the same arithmetic."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if (request.param == "cuda") is not torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU where there is one, or else in the interpreter")
    return torch.device(request.param)
