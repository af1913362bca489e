from __future__ import annotations

import httpx
import pytest

from service.client import (
    AnswerError,
    AuthenticationError,
    DeadlineError,
    ProblemError,
    QueueFullError,
    RetryPolicy,
    ServerDeadlineError,
    ServerError,
    UnavailableError,
)
from tests.support.clients import FOUND, Script, Sync, rejection


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (401, (AuthenticationError,)),
        (403, (AuthenticationError,)),
        (404, (ProblemError,)),
        (429, (QueueFullError,)),
        (502, (ServerError,)),
        (503, (UnavailableError, ServerError)),
        (504, (ServerDeadlineError, DeadlineError, ServerError)),
    ],
)
def test_each_rejection_has_its_type(calling: type[Sync], status: int, kinds: tuple[type[Exception], ...]) -> None:
    for answer in (rejection(status), httpx.Response(status, text="a proxy's")):
        with pytest.raises(ProblemError) as caught:
            calling(Script(answer), retry=RetryPolicy(attempts=1)).detect(b"image")
        assert all(isinstance(caught.value, kind) for kind in kinds)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={**FOUND, "boxes": [[1]]}),
        httpx.Response(307, headers={"location": "https://elsewhere/"}),
    ],
)
def test_another_server_is_told_from_the_service(calling: type[Sync], answer: httpx.Response) -> None:
    with pytest.raises(AnswerError, match="right address"):
        calling(Script(answer)).detect(b"image")
