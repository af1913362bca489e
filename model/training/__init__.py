"""The training half of the detector."""
