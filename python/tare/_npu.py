"""Device names of NPUs mean the CPU in the process of `python -m tare.run`.

torch lets a mode see each call before it looks at the arguments (torch.overrides), torch.device()
included, so "npu" and "npu:3" are replaced there, wherever they stand. `torch_npu` and `torch.npu`
are stand-ins whose calls do nothing. transformers' models are loaded with a device_map that names the
CPU alone. torch and transformers themselves are imported by the script alone.
"""
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

from ._devices import host_map, is_accelerator
from ._log import logger

_said = set()


def _say(what):
    if what not in _said:
        _said.add(what)
        logger.warning("%s: tare computes on the CPU.", what)


def _replace(value):
    if isinstance(value, str) and is_accelerator(value):
        _say(f"device {value!r}")
        return "cpu"
    return value


class _StandIn(types.ModuleType):
    """torch_npu and torch.npu: is_available() is False, whatever else is called does nothing."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # libraries look for it

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "npu":  # torch_npu.npu is what torch.npu is
            return sys.modules.get("torch.npu") or _StandIn("torch_npu.npu")

        def nothing(*_args, **_kwargs):
            if name == "is_available":
                return False
            _say(f"{self.__name__}.{name}()")
            return 0 if name.endswith("count") else None
        return nothing


def _enter(torch):
    from torch.overrides import TorchFunctionMode

    class NpuIsCpu(TorchFunctionMode):
        def __torch_function__(self, function, _types, args=(), kwargs=None):
            args = tuple(map(_replace, args))
            if function is torch.device and args[1:] and args[0] == "cpu":
                args = args[:1]  # device("npu", 3)
            return function(*args, **{k: _replace(v) for k, v in (kwargs or {}).items()})

    NpuIsCpu().__enter__()
    if not hasattr(torch, "npu"):
        torch.npu = sys.modules["torch.npu"] = _StandIn("torch.npu")
        torch.Tensor.npu = lambda self, *_args, **_kwargs: self.to("npu")
        torch.nn.Module.npu = lambda self, *_args, **_kwargs: self.to("npu")


def _set_initialized_submodules(*_args):
    """A function of older transformers, where scripts put a faster one of their own."""


def _widen_codes(model):
    """FP8 numbers of a checkpoint whose config does not speak of them, as BF16: older transformers
    loads them so, and scripts then multiply them by the scales of their blocks."""
    torch = sys.modules["torch"]
    if getattr(model.config, "quantization_config", None) is None:
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point and parameter.dtype.itemsize == 1:
                parameter.data = parameter.data.to(torch.bfloat16)


def _load_on_cpu(modeling):
    """`modeling`: transformers.modeling_utils."""
    load = modeling.PreTrainedModel.from_pretrained.__func__

    @functools.wraps(load)
    def from_pretrained(cls, *args, **kwargs):
        if kwargs.get("device_map") is not None:
            kwargs["device_map"], named = host_map(kwargs["device_map"])
            if named is not None:
                _say(f"device {named!r} in device_map")
        loaded = load(cls, *args, **kwargs)
        _widen_codes(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    modeling.PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    if not hasattr(modeling, "set_initialized_submodules"):
        modeling.set_initialized_submodules = _set_initialized_submodules


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets a module be found as ever, and calls `then` with it when it has been loaded."""

    def __init__(self, name, then):
        self._name, self._then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self._then(module)
            loader.exec_module = exec_module
        return spec


def install():
    """For the rest of the process. Threads that a script starts itself are not covered."""
    if importlib.util.find_spec("torch_npu") is None:
        sys.modules["torch_npu"] = _StandIn("torch_npu")
    for name, then in (("torch", _enter), ("transformers.modeling_utils", _load_on_cpu)):
        if name in sys.modules:
            then(sys.modules[name])
        else:
            sys.meta_path.insert(0, _AfterImport(name, then))
