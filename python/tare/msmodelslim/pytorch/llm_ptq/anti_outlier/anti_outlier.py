"""See tare.msmodelslim."""
from tare import AntiOutlier

__all__ = ["AntiOutlier"]
