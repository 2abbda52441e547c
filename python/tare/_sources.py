"""The models that AntiOutlier, Calibrator and LayerSelector take, as C sees them."""
import sys

import numpy as np

from ._log import logger
from ._native import decode, ffi, lib
from .model import Model

_SMOOTHING = "_tare_smoothing"  # attribute of a model that AntiOutlier.process() was run on


def source_of(model):
    """A source for what the caller gave: `.context`, `.open()` (a context manager that gives a
    tare_model), `.model_type`, `.max_memory` and `.serving_dtype`. TypeError for what is no model.
    """
    if isinstance(model, Model):
        return model
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        from ._torch_model import TorchSource
        return TorchSource(model)
    raise TypeError("model must be a tare model or a transformers PreTrainedModel, not "
                    f"{type(model).__name__}.")


def attach_smoothing(model, smoothing):
    """Leaves the result of AntiOutlier on the model, for its Calibrator."""
    if smoothing_of(model) is not None:
        logger.warning("the model has been through AntiOutlier before: the earlier result is "
                       "replaced.")
    object.__setattr__(model, _SMOOTHING, smoothing)


def smoothing_of(model):
    return model.__dict__.get(_SMOOTHING)


def run_settings(source, compat):
    """Recipe settings of the section `run` that belong to the model and the mode."""
    settings = [("run.dtype", source.serving_dtype)] if source.serving_dtype else []
    return settings + ([("run.compat", compat)] if compat else [])


class Smoothing:
    """A tare_smoothing. `vectors()` shows what was found."""

    def __init__(self, handle):
        self.handle = handle

    def vectors(self):
        """{name: FP32 array}: what smoothing makes of linears and norms, as tare.h names them."""
        found = {}
        for i in range(lib.tare_smoothing_count(self.handle)):
            vector = lib.tare_smoothing_at(self.handle, i)
            values = ffi.buffer(vector.values, vector.length * 4)
            found[decode(vector.name)] = np.frombuffer(bytes(values), np.float32)
        return found

    def __deepcopy__(self, _memo):
        return self  # it never changes
