"""See tare.msmodelslim. There, hooks of accelerate move weights between devices and scripts go by
way of them to change a weight; here all weights lie on the CPU, where a script finds them."""
from .hook_adapter import PrepareWeight, replace_device_align_hook_if_needed

__all__ = ["PrepareWeight", "replace_device_align_hook_if_needed"]
