"""See tare.msmodelslim."""
from tare import AntiOutlier, AntiOutlierConfig

__all__ = ["AntiOutlier", "AntiOutlierConfig"]
