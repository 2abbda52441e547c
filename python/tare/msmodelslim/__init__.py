"""msModelSlim's module paths: what a script imports from msmodelslim.… is here under the same path
(`python -m tare.run script.py` makes the one mean the other)."""
from tare import logger, set_logger_level

__all__ = ["logger", "set_logger_level"]
