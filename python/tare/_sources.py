"""The models that AntiOutlier, Calibrator and LayerSelector take, as C sees them."""
import sys

from ._log import logger
from .model import Model

_SMOOTHING = "_tare_smoothing"  # attribute of a model that AntiOutlier.process() was run on


def source_of(model):
    """A source for what the caller gave: `.context`, `.open()` (a context manager that gives a
    tare_model), `.max_memory` and `.serving_dtype`. TypeError for what is no model."""
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
