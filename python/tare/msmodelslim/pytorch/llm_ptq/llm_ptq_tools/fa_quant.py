"""See tare.msmodelslim."""
from tare import FAQuantizer, TensorType

__all__ = ["FAQuantizer", "TensorType"]
