"""Why a serving form cannot be made. Each message says what to do.

ServingFormError
├── PrecisionError          the device has not that arithmetic or backend
├── OpenVINOMissingError    it needs packages that are not installed
├── CalibrationError        int8 needs pictures, and there are none
├── UncalibratedError       int8 has to be calibrated first, which the caller did not want to wait for
└── QuantisationError       int8 fails on these weights
"""

from __future__ import annotations


class ServingFormError(Exception):
    """The detector cannot be brought into the form that is asked for."""


class PrecisionError(ServingFormError):
    """The device cannot compute in that precision, or by that backend."""


class OpenVINOMissingError(ServingFormError):
    """OpenVINO or NNCF is not installed."""


class CalibrationError(ServingFormError):
    """There are no pictures to calibrate on."""


class UncalibratedError(ServingFormError):
    """There are no ranges for int8 yet, and they were not to be looked for."""


class QuantisationError(ServingFormError):
    """The quantised network does not compute what it should."""
