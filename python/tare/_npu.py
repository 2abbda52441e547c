"""Device names of NPUs mean the CPU in the process of `python -m tare.run`.

torch lets a mode see each call before it looks at the arguments (torch.overrides), torch.device()
included, so "npu" and "npu:3" are replaced there, wherever they stand. `torch_npu` and `torch.npu`
are stand-ins whose calls do nothing. torch itself is imported by the script alone.
"""
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

from ._devices import is_accelerator
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


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets torch be found as ever, and enters the mode when it has been loaded."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _enter(module)
            loader.exec_module = exec_module
        return spec


def install():
    """For the rest of the process. Threads that a script starts itself are not covered."""
    if importlib.util.find_spec("torch_npu") is None:
        sys.modules["torch_npu"] = _StandIn("torch_npu")
    if "torch" in sys.modules:
        _enter(sys.modules["torch"])
    else:
        sys.meta_path.insert(0, _AfterImport())
