"""INT8 calibration: images -> the range of every tensor that INT8 can quantize."""

from trtkit.calibration.algorithms import ALGORITHMS, DEFAULTS, CalibrationAlgorithm, CalibrationDefaults, register
from trtkit.calibration.calibration import Calibration, check_fits
from trtkit.calibration.calibrator import calibrate

__all__ = [
    "ALGORITHMS",
    "DEFAULTS",
    "Calibration",
    "CalibrationAlgorithm",
    "CalibrationDefaults",
    "calibrate",
    "check_fits",
    "register",
]
