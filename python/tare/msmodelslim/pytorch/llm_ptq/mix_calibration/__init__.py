"""See tare.msmodelslim."""
from tare import CalibrationData, DatasetProcessorBase

__all__ = ["CalibrationData", "DatasetProcessorBase"]
