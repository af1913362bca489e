"""The serving form of the detector: the same arithmetic as `model.faster_rcnn`, laid out for speed."""
