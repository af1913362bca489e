"""The serving form of the detector: the same arithmetic as `model.faster_rcnn`, laid out for speed."""

import sys

# OpenVINO and NNCF report each use to a server on the Internet, unless this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
