"""msModelSlim's module paths: what a script imports from msmodelslim.… is here under the same path
(`python -m tare.run script.py` makes the one mean the other)."""
from tare import logger, set_logger_level

OLD_PACKAGE_NAME, NEW_PACKAGE_NAME = "modelslim", "msmodelslim"

__all__ = ["NEW_PACKAGE_NAME", "OLD_PACKAGE_NAME", "logger", "set_logger_level"]
