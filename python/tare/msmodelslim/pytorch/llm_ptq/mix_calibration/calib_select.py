"""See tare.msmodelslim."""
from tare import CalibrationData

__all__ = ["CalibrationData"]
