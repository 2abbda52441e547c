"""See tare.msmodelslim."""
from tare import Calibrator

__all__ = ["Calibrator"]
