"""See tare.msmodelslim."""
from tare import DatasetProcessorBase

__all__ = ["DatasetProcessorBase"]
