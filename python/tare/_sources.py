"""Models that AntiOutlier, Calibrator and LayerSelector take, as C sees them."""
from .model import Model


def source_of(model):
    """A tare Model for what the caller gave; TypeError for what is no model."""
    if isinstance(model, Model):
        return model
    raise TypeError(f"model must be a tare model or a transformers PreTrainedModel, not "
                    f"{type(model).__name__}.")


def attach_smoothing(model, smoothing):
    source_of(model).smoothing = smoothing


def smoothing_of(model):
    return source_of(model).smoothing
