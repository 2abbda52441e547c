"""See tare.msmodelslim."""
from tare import LayerSelector

__all__ = ["LayerSelector"]
