"""Images -> the range of every tensor that INT8 may carry."""

from trtkit.calibration.algorithms import ALGORITHMS
from trtkit.calibration.calibration import Calibration
from trtkit.calibration.calibrator import calibrate

__all__ = ["ALGORITHMS", "Calibration", "calibrate"]
