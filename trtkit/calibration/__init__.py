"""Pictures -> the range of every tensor that INT8 may carry."""

from trtkit.calibration.algorithms import ALGORITHMS
from trtkit.calibration.calibrating import calibrate
from trtkit.calibration.calibration import Calibration

__all__ = ["ALGORITHMS", "Calibration", "calibrate"]
