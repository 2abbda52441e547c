"""A transformers PreTrainedModel as a source: its parameters are used where they lie.

C runs the model by its config.model_type, so what stands in the module tree must be what that model
type has: other modules, hooks and replaced forwards are errors that name the module. FAQuantizer
members of attention modules (a modeling file edited as msModelSlim's guide says) change nothing: C
observes q, k and v itself.
"""
import contextlib
import importlib
import json
import os

import torch

from ._context import NEW, shared_context
from ._devices import CpuHook
from ._log import logger
from ._native import encode, ffi, lib
from .errors import ModelError

_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
# Of a config: where it came from and how transformers runs it, not what the model computes.
_IRRELEVANT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
               "attn_implementation", "_attn_implementation", "architectures", "auto_map")


# Module classes of checkpoints' own modeling files that transformers has under other names.
_REMOTE_CLASSES = {"deepseek_v2": {"MoEGate", "DeepseekV2YarnRotaryEmbedding"},
                   "deepseek_v3": {"MoEGate", "DeepseekV3YarnRotaryEmbedding"}}
# Those that hold parameters: norms, and the routers of mixtures of experts.
_HOLDERS = ("RMSNorm", "Router", "MoEGate")


def model_type_of(model):
    """That of the config's class: scripts change the config's own."""
    return type(model.config).model_type or model.config.model_type


def _known_classes(model_type):
    """Names of the module classes of a model type, as transformers and checkpoints have them."""
    name = f"transformers.models.{model_type}.modeling_{model_type}"
    try:
        return set(vars(importlib.import_module(name))) | _REMOTE_CLASSES.get(model_type, set())
    except ImportError:
        raise ModelError(f"model_type {model_type!r} is not known") from None


def _origin(module):
    return type(module).__module__.partition(".")[0]


def check_in_memory(model):
    """ModelError for a model whose parameters accelerate keeps on the disk or on another device, or
    that has none yet (device "meta"): there is nothing here to quantize."""
    hooked = [name for name, module in model.named_modules()
              if not isinstance(getattr(module, "_hf_hook", CpuHook()), CpuHook)]
    meta = [name for name, tensor in model.named_parameters() if tensor.device.type == "meta"]
    if meta:
        problem = (f"{meta[0]} holds no values (device meta): the model was offloaded to the disk, "
                   "or never loaded")
    elif hooked:
        problem = (f"{hooked[0] or 'the model'} has hooks of accelerate (device_map, offload), "
                   "which move weights between devices")
    else:
        return
    raise ModelError(f"{problem}; give tare.load(path) in place of the model: it reads the "
                     "checkpoint layer by layer, so the model need not fit into memory")


def check_modules(model):
    """ModelError that names the first module which C cannot express."""
    check_in_memory(model)
    model_type = model_type_of(model)
    known = _known_classes(model_type)
    activation = getattr(model.config, "hidden_act", None)
    for name, module in model.named_modules():
        kind = type(module).__name__
        problem = None
        if "forward" in module.__dict__ or hasattr(module, "parametrizations"):
            problem = "has a forward or a parametrization of its own"
        elif module._forward_hooks or module._forward_pre_hooks:
            problem = "has forward hooks"
        elif list(module.parameters(recurse=False)):
            plain = type(module) in (torch.nn.Linear, torch.nn.Embedding)
            if not plain and not (kind in known and any(word in kind for word in _HOLDERS)):
                problem = "holds parameters that this model type does not have"
        elif name.endswith("act_fn") and activation is not None:
            from transformers.activations import ACT2FN
            if type(ACT2FN[activation]) is not type(module):
                problem = f"is not the activation of the config ({activation})"
        elif kind not in known and _origin(module) != "torch":
            problem = "is no part of this model type"
        if problem:
            raise ModelError(f"{name or 'the model'} ({kind}) {problem}; tare runs "
                             f"{model_type} models by their config and parameters")


def _same_config(model, folder):
    """Whether the model still has the config of the folder that it was loaded from."""
    def relevant(config):
        return {k: v for k, v in config.to_dict().items() if k not in _IRRELEVANT}
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        values = json.load(file)
    try:
        stored = type(model.config).from_dict(values)
    except Exception:  # not one of this class any more
        return False
    return relevant(stored) == relevant(model.config)


class TorchSource:
    """See tare._sources.source_of."""

    max_memory = None

    def __init__(self, model):
        self.model, self.context = model, shared_context()
        check_modules(model)
        folder = getattr(model.config, "_name_or_path", "") or ""
        self.folder = folder if os.path.isfile(os.path.join(folder, "config.json")) else None
        if self.folder is None:
            logger.warning("%s is no folder with a config.json: the tokenizer and other files of "
                           "the checkpoint will not be copied.", folder or "the model's origin")
        self.from_folder = self.folder is not None and _same_config(model, self.folder)

    @property
    def model_type(self):
        return model_type_of(self.model)

    @property
    def serving_dtype(self):
        """The dtype that the model has in memory, if its folder says another one."""
        dtype = str(self.model.dtype).rsplit(".", 1)[-1]
        if self.from_folder:
            with open(os.path.join(self.folder, "config.json"), encoding="utf-8") as file:
                config = json.load(file)
            if config.get("dtype", config.get("torch_dtype")) == dtype:
                return None
        return dtype

    def _tensors(self):
        """(name, tensor) of all parameters and persistent buffers, tied ones too."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if tensor.device.type != "cpu":
                raise ModelError(f"{name} is on the device {tensor.device}; load or move the model "
                                 "to the CPU (a model that does not fit: tare.load)")
            if tensor.dtype not in _DTYPES:
                raise ModelError(f"{name} has the dtype {tensor.dtype}; possible: bfloat16, "
                                 "float16, float32")
            yield name, tensor.detach()

    @contextlib.contextmanager
    def open(self):
        """A tare_model of the parameters as they are now."""
        named = list(self._tensors())
        table = ffi.new("tare_tensor[]", len(named))
        keep = []
        for entry, (name, tensor) in zip(table, named):
            texts = encode(name), encode(_DTYPES[tensor.dtype])
            shape = ffi.new("size_t[]", list(tensor.shape) or [1])
            strides = ffi.new("ptrdiff_t[]", list(tensor.stride()) or [1])
            keep.append((texts, shape, strides, tensor))
            entry.name, entry.dtype = texts
            entry.rank, entry.shape, entry.strides = tensor.dim(), shape, strides
            entry.data = ffi.cast("void *", tensor.data_ptr())
            entry.bytes = tensor.numel() * tensor.element_size()
        config = None if self.from_folder else self.model.config.to_json_string(use_diff=False)
        model = self.context.create("tare_model", lib.tare_model_from_tensors, self.context.handle,
                                    encode(config), encode(self.folder), table, len(named), NEW)
        try:
            yield model
        finally:
            ffi.release(model)
            keep.clear()
