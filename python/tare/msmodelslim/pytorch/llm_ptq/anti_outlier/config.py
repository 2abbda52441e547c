"""See tare.msmodelslim."""
from tare import AntiOutlierConfig

__all__ = ["AntiOutlierConfig"]
