"""MLServer as its documentation shows it: `mlserver start mlserver_model`, with WORK=untouched|decode|detect.

In one process: its workers (`parallel_workers`, 1.7.1) do not start with the uvloop that comes with it.
"""

import base64

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from works import work


class Detector(MLModel):
    async def load(self) -> bool:
        self.work = work()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = self.work([base64.b64decode(payload.inputs[0].data.root[0])])[0]
        boxes = [number for box in found["boxes"] for number in box]
        outputs = [ResponseOutput(name="boxes", shape=[len(found["boxes"]), 4], datatype="FP32", data=boxes)]
        for name, datatype in (("labels", "INT64"), ("scores", "FP32")):
            outputs.append(ResponseOutput(name=name, shape=[len(found[name])], datatype=datatype, data=found[name]))
        return InferenceResponse(model_name=self.name, outputs=outputs)
