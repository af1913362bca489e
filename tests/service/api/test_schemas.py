from __future__ import annotations

import json

from service.api.schemas import FastJSONResponse


def test_json_keeps_its_digits() -> None:
    values = [0.1, 1 / 3, 123.4567, 0.998162, 1e-7, 639.99995, 0.0, 5e-5, 1e22]
    assert json.loads(bytes(FastJSONResponse(values).body)) == values
    assert FastJSONResponse([0.05, 123.4567, 7.0]).body == b"[0.05,123.4567,7.0]"
