"""DeepStack's detection API under `/v1/vision`: for cameras' software that speaks it."""
