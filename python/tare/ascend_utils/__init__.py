"""ascend_utils, a package beside msModelSlim's: what its example scripts import from there
(`python -m tare.run script.py` makes the one mean the other)."""
from .common.utils import ResListToRelease

__all__ = ["ResListToRelease"]
