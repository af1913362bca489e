"""BentoML as its documentation shows it: `bentoml serve bentoml_app:Untouched` or `bentoml_app:Decode`."""

from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from PIL.Image import Image


@bentoml.service(workers=2)
class Untouched:
    @bentoml.api(route="/detect")
    def detect(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        image.read_bytes()
        return {"boxes": [], "labels": [], "scores": []}


@bentoml.service(workers=2)
class Decode:
    @bentoml.api(route="/detect")
    def detect(self, image: Image, /) -> dict[str, Any]:
        image.convert("RGB")
        return {"boxes": [], "labels": [], "scores": []}
