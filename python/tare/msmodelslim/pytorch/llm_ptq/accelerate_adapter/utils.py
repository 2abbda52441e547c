"""See tare.msmodelslim.pytorch.llm_ptq.accelerate_adapter."""
HF_HOOK = "_hf_hook"


def judge_module_with_accelerate(module):
    return hasattr(module, HF_HOOK)


def judge_model_with_accelerate(_model):
    """Scripts ask because they change weights by way of hooks; here they always can."""
    return True


__all__ = ["HF_HOOK", "judge_model_with_accelerate", "judge_module_with_accelerate"]
