"""See tare.msmodelslim."""
from tare import Calibrator, LayerSelector, QuantConfig

__all__ = ["Calibrator", "LayerSelector", "QuantConfig"]
