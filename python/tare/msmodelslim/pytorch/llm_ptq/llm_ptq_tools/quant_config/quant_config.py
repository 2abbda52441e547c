"""See tare.msmodelslim."""
from tare import QuantConfig

__all__ = ["QuantConfig"]
