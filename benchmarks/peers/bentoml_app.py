"""BentoML as its documentation shows it: `bentoml serve bentoml_app:Untouched`, or `:Decode`, or `:Detect`."""

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


@bentoml.service(workers=1, traffic={"timeout": 600})
class Detect:
    def __init__(self) -> None:
        from works import detection

        self.found = detection()

    @bentoml.api(route="/detect")
    def detect(self, image: Image, /) -> dict[str, Any]:
        return self.found([image.convert("RGB")])[0]
