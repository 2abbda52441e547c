"""See tare.msmodelslim.pytorch.llm_ptq.accelerate_adapter."""
import contextlib

from tare._devices import CpuHook

from .utils import HF_HOOK, judge_module_with_accelerate


class PrepareWeight(contextlib.AbstractContextManager):
    """A module's weights are where they can be changed already."""

    def __init__(self, module, post_force=False, post_recurse=False):
        self.module, self.post_force, self.post_recurse = module, post_force, post_recurse

    def __exit__(self, *_error):
        return None


def replace_device_align_hook_if_needed(module, recurse=True, prefix=""):
    """Scripts read from a module's hook where it runs and whether its weights are elsewhere."""
    del prefix
    for one in module.modules() if recurse else [module]:
        if not judge_module_with_accelerate(one):
            setattr(one, HF_HOOK, CpuHook())


def get_offloaded_weights_loader_if_have(_module, recurse=True):
    del recurse


__all__ = ["PrepareWeight", "get_offloaded_weights_loader_if_have",
           "replace_device_align_hook_if_needed"]
