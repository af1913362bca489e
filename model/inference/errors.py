"""Why a serving form cannot be made. Each message says what to do.

ServingFormError
├── PrecisionError          the device has not that arithmetic or backend
├── OpenVINOMissingError    it needs packages that are not installed
├── CalibrationError        int8 needs pictures, and there are none
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


class QuantisationError(ServingFormError):
    """The quantised network does not compute what it should."""
