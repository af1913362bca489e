"""MLServer as its documentation shows it: `mlserver start mlserver_untouched` or `mlserver_decode`."""

import base64
import io

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from PIL import Image


class Untouched(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        self.look_at(base64.b64decode(payload.inputs[0].data.root[0]))
        empty = ResponseOutput(name="boxes", shape=[0, 4], datatype="FP32", data=[])
        return InferenceResponse(model_name=self.name, outputs=[empty])

    def look_at(self, data: bytes) -> None:
        pass


class Decode(Untouched):
    def look_at(self, data: bytes) -> None:
        Image.open(io.BytesIO(data)).convert("RGB")
